// The page of one slide.
import { compareWith } from "./compare.js";
import { get } from "./common.js";
import { fidelityMap } from "./fidelity.js";
import { Images } from "./images.js";
import { follow, go, placeOf } from "./place.js";
import { showScale } from "./scale.js";
import { sources } from "./tiles.js";
import { createViewer } from "./viewer.js";

const byId = (id) => document.getElementById(id);

/** Tell those who do not see the page what has changed. */
function say(text) {
  byId("said").textContent = text;
}

function fail(message) {
  byId("problem").textContent = message;
  byId("problem").hidden = false;
}

function keys(viewer, slide, map, compare) {
  const modes = { d: "decoded", o: "original", s: "swipe", b: "side", x: "difference" };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=radio]), select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in modes && slide.original) compare.set(modes[event.key]);
    else if (event.key === "f") map.toggle();
    else if (event.key === "1") go(viewer, slide, { ...placeOf(viewer, slide), zoom: 1 / devicePixelRatio }, false);
    else if (event.key === "0") viewer.viewport.goHome();
    else if (!["r", "R", "F"].includes(event.key)) return; // with which OpenSeadragon turns and mirrors
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
}

async function start() {
  const slide = await get(`/api/slides/${location.pathname.split("/").pop()}`);
  document.title = `${slide.name} – histocodec`;
  byId("name").textContent = slide.name;
  if (!window.OpenSeadragon) {
    fail("OpenSeadragon, which shows slides, is not installed. The terminal of the server says what to do.");
    return;
  }
  const viewer = createViewer(byId("viewer"), `Slide ${slide.name}`, {
    showNavigator: true,
    navigatorElement: byId("overview"),
    navigatorAutoFade: false,
    navigatorBackground: "transparent",
    navigatorBorderColor: "transparent",
    navigatorDisplayRegionColor: "#a50026",
    navigatorOpacity: 1,
  });
  window.osd = viewer; // for the console, and for tests
  const images = new Images(viewer);
  viewer.addHandler("tile-load-failed", () => say("A part of the slide could not be loaded"));
  viewer.addOnceHandler("image-ready", () => {
    follow(viewer, slide);
    showScale(viewer, slide);
  });
  images.show("decoded", sources(slide).decoded());
  const map = fidelityMap(viewer, slide, images, say);
  const compare = compareWith(viewer, slide, images, say);
  keys(viewer, slide, map, compare);

  const zoomBy = (factor) => { viewer.viewport.zoomBy(factor); viewer.viewport.applyConstraints(); };
  byId("in").addEventListener("click", () => zoomBy(2));
  byId("out").addEventListener("click", () => zoomBy(0.5));
  byId("home").addEventListener("click", () => viewer.viewport.goHome());
  byId("one").addEventListener("click", () => go(viewer, slide, { ...placeOf(viewer, slide), zoom: 1 / devicePixelRatio }));
  byId("help").addEventListener("click", () => {
    byId("keys").hidden = !byId("keys").hidden;
    byId("help").setAttribute("aria-expanded", String(!byId("keys").hidden));
  });
}

start().catch((error) => fail(`The slide cannot be shown: ${error.message}`));
