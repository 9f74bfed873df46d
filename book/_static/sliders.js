// A slider shows the frame of its place. The other frames are fetched once somebody is about to move it.
const start = (box) => {
  const picture = box.querySelector("img");
  const sliders = [...box.querySelectorAll("input")];
  const { words, frames } = JSON.parse(box.querySelector("script").textContent);
  const show = () => {
    let place = 0;
    for (const [i, slider] of sliders.entries()) {
      const word = words[i][slider.value];
      place = place * words[i].length + Number(slider.value);
      slider.setAttribute("aria-valuetext", word);
      slider.nextElementSibling.textContent = word;
    }
    [picture.src, picture.alt] = frames[place];
  };
  const fetchAll = () => frames.forEach(([address]) => (new Image().src = address));
  for (const event of ["pointerover", "focusin"]) box.addEventListener(event, fetchAll, { once: true });
  box.addEventListener("input", show);
};
document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".explore").forEach(start));
