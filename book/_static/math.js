// Formulas are written as they come near the window, by a script that is fetched once the text is there to be read.
const unwritten = new Set();
const write = (near) => {
  const formulas = near.filter((formula) => unwritten.delete(formula)); // printing may have written it
  MathJax.typeset(formulas);
  for (const box of formulas.flatMap((formula) => [...formula.querySelectorAll("mjx-container")])) {
    // What scrolls can be scrolled by keys; a formula in a sentence holds hidden words that only look too wide.
    if (box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX !== "visible") box.tabIndex = 0;
  }
};
const observer = new IntersectionObserver(
  (entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    near.forEach((formula) => observer.unobserve(formula));
    // A few at a time: between them the page answers its reader.
    for (let i = 0; i < near.length; i += 4) setTimeout(write, 0, near.slice(i, i + 4));
  },
  { rootMargin: "50%" },
);
const begin = async () => {
  await MathJax.startup.promise;
  unwritten.forEach((formula) => observer.observe(formula));
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
const findFormulas = () => {
  document.querySelectorAll(".math").forEach((formula) => unwritten.add(formula));
  if (unwritten.size) afterTheText.observe({ type: "paint", buffered: true });
};
// The one long page that is printed has its scripts before its text.
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", findFormulas);
else findFormulas();
