// A viewer: OpenSeadragon with our choices.

const MOST = 16; // screen pixels for each pixel of the slide

export function createViewer(place, label, more = {}) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const viewer = OpenSeadragon({
    element: place,
    drawer: "canvas",
    showNavigationControl: false,
    maxZoomPixelRatio: MOST,
    minZoomImageRatio: 0.7,
    visibilityRatio: 0.2,
    preserveImageSizeOnResize: true,
    animationTime: still ? 0 : 0.5,
    springStiffness: 9,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    imageLoaderLimit: 8,
    maxImageCacheCount: 400,
    timeout: 60000,
    tileRetryMax: 3,
    tileRetryDelay: 1500,
    ...more,
  });
  viewer.canvas.setAttribute("aria-label", `${label}. Arrow keys move, plus and minus zoom, 0 shows the whole slide.`);
  viewer.canvas.setAttribute("role", "application");
  // Beyond 1:1 pixels are squares: nothing is invented between them.
  let smooth = true;
  const sharpen = () => {
    const item = viewer.world.getItemAt(0);
    if (!item) return;
    const zoom = item.viewportToImageZoom(viewer.viewport.getZoom(true)) * devicePixelRatio;
    if (smooth !== zoom < 1.001) {
      smooth = zoom < 1.001;
      viewer.drawer.setImageSmoothingEnabled(smooth);
    }
  };
  viewer.addHandler("viewport-change", sharpen);
  viewer.addHandler("resize", sharpen);
  return viewer;
}
