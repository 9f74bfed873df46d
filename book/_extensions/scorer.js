// First the pages where a word is explained: chapters before pages that collect (they lie in no folder), and of chapters
// that match alike the one that comes first in the book.
var Scorer = {
  score: ([name, , , , score]) => {
    Scorer.order ??= [...document.querySelectorAll(".bd-links a")].map((link) => link.getAttribute("href"));
    return score - Scorer.order.indexOf(`${name}.html`) / 1000 - (name.includes("/") ? 0 : 20);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
