// The page of the API, drawn from its OpenAPI document.
import { element, get } from "./common.js";

function parameters(operation) {
  if (!operation.parameters.length) return [];
  const rows = operation.parameters.map((parameter) => {
    const schema = parameter.schema;
    const kind = schema.enum ? schema.enum.join(", ") : schema.type;
    const preset = schema.default === undefined ? "" : `; ${schema.default} by default`;
    return element("tr", {},
      element("td", {}, element("code", {}, parameter.name)),
      element("td", {}, parameter.in === "path" ? "in the path" : parameter.required ? "required" : "optional"),
      element("td", {}, `${kind}${preset}`),
      element("td", {}, parameter.description));
  });
  const heads = ["Name", "", "Values", "Meaning"].map((text) => element("th", { scope: "col" }, text));
  return [element("div", { class: "scroll" }, element("table", {}, element("tr", {}, ...heads), ...rows))];
}

function entry(path, operation) {
  const media = Object.keys(operation.responses["200"].content).join(", ");
  return element("details", {},
    element("summary", {}, element("code", {}, `GET ${path}`), ` – ${operation.summary}`),
    ...(operation.description ? [element("p", {}, operation.description)] : []),
    element("p", { class: "quiet" }, `Answers: ${media}`),
    ...parameters(operation));
}

const described = await get("/api/openapi.json");
document.getElementById("about").textContent = described.info.description;
const groups = new Map();
for (const [path, { get: operation }] of Object.entries(described.paths)) {
  const name = operation.tags[0];
  if (!groups.has(name)) groups.set(name, []);
  groups.get(name).push(entry(path, operation));
}
for (const [name, entries] of groups) document.getElementById("paths").append(element("h2", {}, name), ...entries);
