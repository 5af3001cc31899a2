// The original beside the decoded slide: alone, swiped, side by side, or their difference; with the PSNR of what is in view.
import { get } from "./common.js";
import { createViewer } from "./viewer.js";
import { sources } from "./tiles.js";

const WAIT = 250; // milliseconds of rest before what is in view is compared
const STEP = 2; // per cent that an arrow key moves the border
const EXPLAINED = {
  original: "the original is shown",
  swipe: "left the original, right the decoded slide",
  side: "the original beside the decoded slide",
  difference: "grey: no difference; differences are enlarged 8 times",
  decoded: "the decoded slide is shown",
};

export function compareWith(viewer, slide, images, say) {
  const modes = document.getElementById("modes");
  const border = document.getElementById("swipe");
  const compared = document.getElementById("compared");
  const labels = [document.getElementById("left-label"), document.getElementById("right-label")];
  const pane = document.getElementById("other-pane");
  let share = 0.5;
  let mode = "decoded";
  let other = null;
  let asked = new AbortController();
  let timer = 0;
  if (!slide.original) return { set() {} };
  modes.hidden = false;

  function clip() {
    const item = images.item("original");
    if (!item) return;
    if (mode !== "swipe") { item.setClip(null); return; }
    const width = viewer.viewport.getContainerSize().x;
    const edge = viewer.viewport.pointFromPixel(new OpenSeadragon.Point(share * width, 0), true).x * slide.width;
    const shown = Math.min(slide.width, edge);
    item.setOpacity(shown > 0 ? 1 : 0);
    if (shown > 0) item.setClip(new OpenSeadragon.Rect(0, 0, shown, slide.height));
  }

  function moved() {
    border.style.left = `${100 * share}%`;
    border.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    border.setAttribute("aria-valuetext", `${Math.round(100 * share)} % original`);
    clip();
  }

  function label(left, right) {
    [left, right].forEach((text, index) => {
      labels[index].textContent = text;
      labels[index].hidden = !text;
    });
  }

  function beside(on) {
    pane.hidden = !on;
    if (on && !other) {
      other = createViewer(document.getElementById("other"), "The decoded slide");
      window.osdBeside = other;
      const image = sources(slide).decoded();
      other.addTiledImage({ tileSource: image, x: 0, y: 0, width: 1, success: () => copy(viewer, other) });
      joined(viewer, other);
      joined(other, viewer);
    }
  }

  function set(chosen) {
    mode = chosen;
    modes.querySelector(`input[value="${mode}"]`).checked = true;
    beside(mode === "side");
    const all = sources(slide);
    if (["original", "swipe", "side"].includes(mode)) images.show("original", all.original());
    else images.hide("original");
    if (mode === "difference") images.show("difference", all.difference());
    else images.hide("difference");
    border.hidden = mode !== "swipe";
    label(mode === "swipe" || mode === "side" ? "Original" : "", mode === "swipe" ? "Decoded" : "");
    compared.hidden = mode === "decoded";
    document.getElementById("explained").textContent = EXPLAINED[mode];
    moved();
    say(EXPLAINED[mode]);
    ask();
  }

  function ask() {
    clearTimeout(timer);
    asked.abort();
    if (mode === "decoded") return;
    timer = setTimeout(measure, WAIT);
  }

  async function measure() {
    asked = new AbortController();
    const place = document.getElementById("psnr");
    const bounds = viewer.viewport.getBounds(false);
    const left = Math.floor(bounds.x * slide.width);
    const top = Math.floor(bounds.y * slide.width);
    const width = Math.max(1, Math.ceil(bounds.width * slide.width));
    const height = Math.max(1, Math.ceil(bounds.height * slide.width));
    const query = `x=${left}&y=${top}&width=${width}&height=${height}`;
    try {
      const answer = await get(`/api/slides/${slide.id}/compare?${query}`, { signal: asked.signal });
      const value = answer.equal ? "no difference" : `PSNR ${answer.psnr.toFixed(2)} dB`;
      place.textContent = `${value} in view (level ${answer.level}, largest difference ${answer.largest_difference})`;
    } catch (error) {
      if (error.name !== "AbortError") place.textContent = `Not compared: ${error.message}`;
    }
  }

  modes.addEventListener("change", (event) => set(event.target.value));
  viewer.addHandler("viewport-change", () => { clip(); ask(); });
  viewer.addHandler("resize", () => { clip(); ask(); });
  viewer.addHandler("image-ready", clip);
  border.addEventListener("pointerdown", (event) => { border.setPointerCapture(event.pointerId); border.focus(); });
  border.addEventListener("pointermove", (event) => {
    if (!border.hasPointerCapture(event.pointerId)) return;
    const box = viewer.element.getBoundingClientRect();
    share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    moved();
  });
  border.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -STEP, ArrowRight: STEP, PageDown: -5 * STEP, PageUp: 5 * STEP, Home: -100, End: 100 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    share = Math.min(1, Math.max(0, share + steps[event.key] / 100));
    moved();
  });
  return { set };
}

/** Show in one viewer what another one shows. */
function copy(from, to) {
  to.viewport.zoomTo(from.viewport.getZoom(true), null, true);
  to.viewport.panTo(from.viewport.getCenter(true), true);
}

function joined(from, to) {
  from.addHandler("viewport-change", () => {
    if (from.isLeading === false || to.element.offsetParent === null) return;
    to.isLeading = false;
    copy(from, to);
    to.isLeading = true;
  });
}
