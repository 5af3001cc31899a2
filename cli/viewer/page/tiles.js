// Where tiles come from: the slide as it decodes, its original, their difference, and the fidelity map.

const SIDE = 512;

/** A source of tiles for OpenSeadragon. `folder` is what stands before LEVEL/COLUMN_ROW. */
export function source(slide, folder, suffix, query = "") {
  const [first, last] = slide.deepzoom_levels;
  const version = slide.version.slice(0, 12);
  return {
    width: slide.width,
    height: slide.height,
    tileSize: SIDE,
    tileOverlap: 0,
    minLevel: first,
    maxLevel: last,
    getTileUrl: (level, x, y) => `${folder}/${level}/${x}_${y}.${suffix(level === last)}?v=${version}${query}`,
  };
}

/** The sources of a slide. Pixels that are compared are PNG at full resolution, so that nothing is lost on the way. */
export function sources(slide) {
  const pixels = (last) => (last && slide.original ? "png" : "jpeg");
  const png = () => "png";
  const here = `/slides/${slide.id}`;
  return {
    decoded: () => source(slide, `${here}_files`, pixels),
    original: () => source(slide, `${here}/original_files`, pixels),
    difference: () => source(slide, `${here}/difference_files`, png),
    map: (measure) => source(slide, `${here}/fidelity_files`, png, `&measure=${measure}`),
  };
}
