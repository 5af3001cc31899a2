// The fidelity map over the slide: half transparent, with its legend, and the numbers of the chunk under the pointer.
import { element, get, short } from "./common.js";
import { sources } from "./tiles.js";

const SVG = "http://www.w3.org/2000/svg";

/** A square of a colour. It is drawn, since the page allows no style in its elements. */
function swatch(colour) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 1 1");
  picture.setAttribute("aria-hidden", "true");
  const square = document.createElementNS(SVG, "rect");
  square.setAttribute("width", "1");
  square.setAttribute("height", "1");
  square.setAttribute("fill", colour);
  picture.append(square);
  return picture;
}

export function fidelityMap(viewer, slide, images, say) {
  const button = document.getElementById("map");
  const legend = document.getElementById("legend");
  const measure = document.getElementById("measure");
  const opacity = document.getElementById("opacity");
  const chunk = document.getElementById("chunk");
  let numbers = null;
  if (!slide.map) return { toggle() {} };
  button.hidden = false;
  if (slide.original) measure.append(element("option", { value: "measured" }, "each block, measured now"));
  for (const step of slide.scale) {
    document.getElementById("scale").append(
      element("li", {}, swatch(step.colour), element("span", {}, step.range), element("span", {}, step.meaning)));
  }

  const on = () => button.getAttribute("aria-pressed") === "true";
  const strength = () => Number(opacity.value) / 100;

  function show() {
    images.hide("map");
    if (on()) images.show("map", sources(slide).map(measure.value), strength(), measure.value);
  }

  async function toggle() {
    button.setAttribute("aria-pressed", String(!on()));
    legend.hidden = !on();
    show();
    say(on() ? "Fidelity map shown" : "Fidelity map hidden");
    if (on() && !numbers) numbers = await get(`/api/slides/${slide.id}/fidelity`).catch(() => null);
  }

  function tell(x, y) {
    if (!on() || !numbers) return;
    const row = Math.floor(y / numbers.chunk);
    const column = Math.floor(x / numbers.chunk);
    const inside = row >= 0 && column >= 0 && row < numbers.rows && column < numbers.columns;
    if (!inside) { chunk.textContent = ""; return; }
    const state = ["background, skipped", "", "lossless"][numbers.tiles[row][column]];
    const decibels = numbers.psnr[row][column];
    const block = numbers.block_error && numbers.block_error[row][column];
    const parts = [`Chunk ${row}, ${column}`];
    if (state) parts.push(state);
    else if (decibels !== null) parts.push(`${decibels.toFixed(1)} dB`);
    if (!state && block) parts.push(`worst block ${(20 * Math.log10(255 / block)).toFixed(1)} dB (${short(block)} grey values)`);
    chunk.textContent = parts.join(": ").replace(": worst", ", worst");
  }

  button.addEventListener("click", toggle);
  measure.addEventListener("change", show);
  opacity.addEventListener("input", () => images.opacity("map", strength()));
  viewer.element.addEventListener("pointermove", (event) => {
    const box = viewer.element.getBoundingClientRect();
    const pixel = new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top);
    const point = viewer.viewport.pointFromPixel(pixel, true);
    tell(point.x * slide.width, point.y * slide.width);
  });
  return { toggle };
}
