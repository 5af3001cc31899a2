// The place in the address: #x,y,zoom, the middle in level-0 pixels, and screen pixels for each of them.

export function parse(hash) {
  const parts = hash.replace(/^#/, "").split(",").map(Number);
  if (parts.length !== 3 || !parts.every(Number.isFinite) || !(parts[2] > 0)) return null;
  return { x: parts[0], y: parts[1], zoom: parts[2] };
}

export function written(place) {
  return `#${Math.round(place.x)},${Math.round(place.y)},${Number(place.zoom.toPrecision(4))}`;
}

/** The middle of what a viewer shows, and its zoom; `current` while it still moves. */
export function placeOf(viewer, slide, current = true) {
  const middle = viewer.viewport.getCenter(current);
  return {
    x: middle.x * slide.width,
    y: middle.y * slide.width,
    zoom: (viewer.viewport.getZoom(current) * viewer.viewport.getContainerSize().x) / slide.width,
  };
}

export function go(viewer, slide, place, at_once) {
  const zoom = (place.zoom * slide.width) / viewer.viewport.getContainerSize().x;
  viewer.viewport.zoomTo(zoom, null, at_once);
  viewer.viewport.panTo(new OpenSeadragon.Point(place.x / slide.width, place.y / slide.width), at_once);
  viewer.viewport.applyConstraints(at_once);
}

/** Keep the address and the viewer in step. */
export function follow(viewer, slide) {
  let own = location.hash;
  let timer = 0;
  const write = () => {
    own = written(placeOf(viewer, slide, false));
    history.replaceState(null, "", own);
  };
  const start = parse(location.hash);
  if (start) go(viewer, slide, start, true);
  viewer.addHandler("viewport-change", () => {
    clearTimeout(timer);
    timer = setTimeout(write, 200);
  });
  addEventListener("hashchange", (event) => {
    const asked = new URL(event.newURL).hash; // `write` may have replaced the address since
    const place = parse(asked);
    if (place && asked !== own) go(viewer, slide, place, false);
  });
}
