// Formulas are written as they come near the window, by a script that is fetched once the text is there to be read.
const unwritten = new Set(document.querySelectorAll(".math"));
const write = (formulas) => {
  formulas.forEach((formula) => unwritten.delete(formula));
  MathJax.typeset(formulas);
  for (const box of formulas.flatMap((formula) => [...formula.querySelectorAll("mjx-container")])) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; // so that keys can scroll it
  }
};
const waiting = new Set(); // a few at a time: between them the page answers its reader
const writeSome = () => {
  const some = [...waiting].slice(0, 4);
  some.forEach((formula) => waiting.delete(formula));
  write(some.filter((formula) => unwritten.has(formula)));
  if (waiting.size) setTimeout(writeSome);
};
const near = new IntersectionObserver(
  (entries) => {
    const idle = waiting.size === 0;
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      near.unobserve(target);
      waiting.add(target);
    }
    if (idle && waiting.size) writeSome();
  },
  { rootMargin: "50%" },
);
const begin = async () => {
  await MathJax.startup.promise;
  unwritten.forEach((formula) => near.observe(formula));
  window.addEventListener("beforeprint", () => write([...unwritten]));
};
const fetchScript = () => {
  const { src } = document.getElementById("mathjax");
  document.head.append(Object.assign(document.createElement("script"), { src, onload: begin }));
};
const afterTheText = new PerformanceObserver(() => {
  afterTheText.disconnect();
  fetchScript();
});
if (unwritten.size) afterTheText.observe({ type: "paint", buffered: true });
