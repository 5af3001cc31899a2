// What the pages share: requests, and numbers as people write them.

/** The JSON at an address. Throws an Error with the server's own words. */
export async function get(address, options = {}) {
  const response = await fetch(address, { headers: { Accept: "application/json" }, ...options });
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error || `the server answered ${response.status}`);
  }
  return response.json();
}

/** An element with attributes and children; text is never taken as HTML. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A number with three digits that matter: 0.25, 12.3, 1230. */
export function short(value) {
  if (value >= 100) return Math.round(value).toString();
  return String(Number(value.toPrecision(3)));
}

/** A length in micrometres as people write it: 50 µm, 2 mm. */
export function length(micrometres) {
  return micrometres >= 1000 ? `${short(micrometres / 1000)} mm` : `${short(micrometres)} µm`;
}

/** The largest of 1, 2, 5, 10, … that is not above a value. */
export function round125(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  for (const step of [5, 2, 1]) if (step * power <= value * (1 + 1e-9)) return step * power;
  return power;
}

/** The middle of a slide's pixels, where both axes differ hardly ever. */
export function pitch(slide) {
  return slide.mpp ? (slide.mpp[0] + slide.mpp[1]) / 2 : null;
}
