// The images that lie over each other in a viewer, by name, from the lowest to the highest.

const ORDER = ["decoded", "original", "difference", "map"];

export class Images {
  constructor(viewer) {
    this.viewer = viewer;
    this.items = new Map(); // name to { item, key, opacity }
  }

  /** Show an image, which is made at the first time; `key` tells sources of one name apart. */
  show(name, source, opacity = 1, key = name) {
    const kept = this.items.get(name);
    if (kept && kept.key === key) {
      kept.opacity = opacity;
      if (kept.item) kept.item.setOpacity(opacity);
      return;
    }
    if (kept) this.remove(name);
    const entry = { item: null, key, opacity };
    this.items.set(name, entry);
    this.viewer.addTiledImage({
      tileSource: source,
      opacity,
      x: 0,
      y: 0,
      width: 1,
      success: ({ item }) => {
        if (this.items.get(name) !== entry) { this.viewer.world.removeItem(item); return; }
        entry.item = item;
        item.setOpacity(entry.opacity);
        this.sort();
        this.viewer.raiseEvent("image-ready", { name });
      },
    });
  }

  hide(name) {
    this.opacity(name, 0);
  }

  opacity(name, value) {
    const kept = this.items.get(name);
    if (!kept) return;
    kept.opacity = value;
    if (kept.item) kept.item.setOpacity(value);
  }

  item(name) {
    return this.items.get(name)?.item;
  }

  remove(name) {
    const kept = this.items.get(name);
    this.items.delete(name);
    if (kept?.item) this.viewer.world.removeItem(kept.item);
  }

  sort() {
    ORDER.map((name) => this.item(name)).filter(Boolean)
      .forEach((item, index) => this.viewer.world.setItemIndex(item, index));
  }
}
