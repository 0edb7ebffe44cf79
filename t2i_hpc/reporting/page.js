for (const gallery of document.querySelectorAll(".frames")) {
  const frames = [...gallery.querySelectorAll("figure")];
  const bar = gallery.querySelector(".slider");
  const [slider, label] = [bar.querySelector("input"), bar.querySelector("output")];
  const show = () => frames.forEach((frame, place) => {
    frame.hidden = place !== Number(slider.value);
    if (!frame.hidden) label.textContent = frame.dataset.label;
  });
  slider.max = slider.value = frames.length - 1;
  bar.hidden = frames.length < 2;
  slider.addEventListener("input", show);
  show();
}

// Downloads: a chart as the SVG file of a paper, a picture as it is shown, the scores as CSV.
const fileName = (text, ending) =>
  `${text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "")}.${ending}`;

const textOf = (element) => new XMLSerializer().serializeToString(element);

function chartFile(figure) {
  const drawing = figure.querySelector("svg");
  const [, , width, height] = drawing.getAttribute("viewBox").split(" ").map(Number);
  const names = [...figure.querySelectorAll(".legend li")].map((entry) => entry.textContent);
  const colors = ["#2a6fdb", "#d9711c", "#1d9a63", "#c2366f", "#7d56c9", "#6b7280"];
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const title = escaped(figure.querySelector("h3").textContent);
  const legend = names.map((name, place) =>
    `<text x="8" y="${34 + 14 * place}" fill="${colors[place % colors.length]}">` +
    `${escaped(name)}</text>`);
  const above = 24 + 14 * names.length;
  // A color is var(--name, #value) in the page; a file has no page, so the value stands alone.
  const inner = textOf(drawing).replace(/var\(--[a-z0-9-]+, (#[0-9a-f]{6})\)/g, "$1")
    .replace("<svg", `<svg x="0" y="${above}" width="${width}" height="${height}"`);
  return `<svg xmlns="${drawing.namespaceURI}" width="${width}" height="${height + above}" ` +
    `font-family="sans-serif" font-size="10"><rect width="100%" height="100%" fill="#fff"/>` +
    `<text x="8" y="16" font-size="12">${title}</text>${legend.join("")}${inner}</svg>`;
}

function tableFile(table) {
  const cell = (element) => `"${element.textContent.replace(/"/g, '""')}"`;
  return [...table.rows].map((row) => [...row.cells].map(cell).join(",") + "\n").join("");
}

function addDownload(place, name, addressOf) {
  const link = document.createElement("a");
  [link.className, link.textContent, link.download, link.href] = ["download", "download", name, "#"];
  link.addEventListener("click", () => { link.href = addressOf(); });
  place.append(link);
}

const fileAddress = (kind, content) => URL.createObjectURL(new Blob([content], { type: kind }));
for (const figure of document.querySelectorAll(".chart"))
  addDownload(figure, fileName(figure.querySelector("h3").textContent, "svg"),
    () => fileAddress("image/svg+xml", chartFile(figure)));
for (const image of document.querySelectorAll(".frames img"))
  addDownload(image.closest("figure").querySelector("figcaption"),
    fileName(image.alt, /^data:image\/(\w+)/.exec(image.src)[1]), () => image.src);
for (const table of document.querySelectorAll(".all-scores table"))
  addDownload(table.closest("details"), "scores.csv",
    () => fileAddress("text/csv", tableFile(table)));
