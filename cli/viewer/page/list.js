// The list of slides.
import { element, get, pitch, short } from "./common.js";

const list = document.getElementById("slides");
const count = document.getElementById("count");
const more = document.getElementById("more");
const find = document.getElementById("find");
let following = "/api/slides";
let total = 0;

function card(slide) {
  if (slide.error) {
    return element("li", { "data-name": slide.name.toLowerCase() },
      element("article", { class: "card" },
        element("div", {}, element("h2", {}, slide.name), element("p", { class: "problem" }, slide.error))));
  }
  const version = slide.version.slice(0, 12);
  const mpp = pitch(slide);
  const facts = [`${slide.width} × ${slide.height}`];
  if (mpp) facts.push(`${short(mpp)} µm`);
  if (slide.objective_power) facts.push(`${short(slide.objective_power)}×`);
  const also = [slide.map ? "fidelity map" : "not compressed"];
  if (slide.original) also.push("original at hand");
  const picture = element("img", {
    src: `${slide.links.thumbnail}?size=512&v=${version}`, alt: "", loading: "lazy", width: "512", height: "384",
  });
  return element("li", { "data-name": slide.name.toLowerCase() },
    element("article", { class: "card" },
      element("a", { href: slide.links.page }, picture,
        element("div", {}, element("h2", {}, slide.name), element("p", {}, facts.join(" · ")),
          element("p", { class: "quiet" }, also.join(" · "))))));
}

function filter() {
  const word = find.value.trim().toLowerCase();
  for (const item of list.children) item.hidden = !item.dataset.name.includes(word);
}

async function load() {
  more.disabled = true;
  try {
    const answer = await get(following);
    list.append(...answer.slides.map(card));
    following = answer.next;
    total = answer.total;
    const shown = list.children.length;
    count.textContent = shown < total ? `${shown} of ${total}` : `${total} ${total === 1 ? "slide" : "slides"}`;
    more.hidden = !following;
    filter();
  } catch (error) {
    count.textContent = `The slides cannot be listed: ${error.message}`;
  }
  more.disabled = false;
}

more.addEventListener("click", load);
find.addEventListener("input", filter);
load();
