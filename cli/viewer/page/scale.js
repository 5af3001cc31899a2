// The scale bar, and the line that says level, resolution and place.
import { length, pitch, round125, short } from "./common.js";
import { placeOf } from "./place.js";

const LONGEST = 160; // pixels of the bar

/** The level that tiles at a zoom are made from: the smallest that has a pixel for each of the screen's. */
export function levelAt(slide, zoom) {
  let number = 0;
  slide.levels.forEach((level, candidate) => {
    if (level.downsample * zoom * devicePixelRatio <= 1.001) number = candidate;
  });
  return number;
}

export function showScale(viewer, slide) {
  const bar = document.getElementById("length");
  const box = document.getElementById("bar");
  const status = document.getElementById("status");
  const mpp = pitch(slide);

  function show() {
    const place = placeOf(viewer, slide);
    const unit = (mpp || 1) / place.zoom; // of a screen pixel
    const value = round125(unit * LONGEST);
    bar.style.width = `${value / unit}px`;
    bar.textContent = mpp ? length(value) : `${short(value)} px`;
    box.setAttribute("aria-label", `Scale: the bar is ${bar.textContent} long`);
    const parts = [`level ${levelAt(slide, place.zoom)}`, mpp ? `${short(unit)} µm/px` : `${short(100 * place.zoom)} %`];
    if (slide.objective_power) parts.push(`${short(slide.objective_power * place.zoom)}×`);
    parts.push(`x ${Math.round(place.x)}, y ${Math.round(place.y)}`);
    status.textContent = parts.join(" · ");
  }

  viewer.addHandler("viewport-change", show);
  viewer.addHandler("resize", show);
  show();
}
