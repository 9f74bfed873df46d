// Formulas are written as they come near the window, by a script that is fetched once the text is there to be read.
const unwritten = new Set(document.querySelectorAll(".math"));
const write = (formulas) => {
  for (const formula of formulas) {
    unwritten.delete(formula);
    near.unobserve(formula);
  }
  MathJax.typeset(formulas);
  for (const box of formulas.flatMap((formula) => [...formula.querySelectorAll("mjx-container")])) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; // so that keys can scroll it
  }
};
const near = new IntersectionObserver(
  (entries) => write(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target)),
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
