// Tell a screen reader what a slider is for and which value it shows: the widgets leave their handles without a name.
const nameSliders = () => {
  for (const slider of document.querySelectorAll(".explore .widget-slider")) {
    const handle = slider.querySelector("[role=slider]");
    const names = {
      "aria-label": slider.querySelector(".widget-label")?.textContent,
      "aria-valuetext": slider.querySelector(".widget-readout")?.textContent,
    };
    for (const [attribute, text] of Object.entries(names)) {
      if (handle && text && handle.getAttribute(attribute) !== text) handle.setAttribute(attribute, text);
    }
  }
};
new MutationObserver(nameSliders).observe(document, { childList: true, subtree: true, characterData: true });
