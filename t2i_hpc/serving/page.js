// The page of t2i_hpc.serve. Texts are set as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);
const SEVERAL = 6; // checkpoints of "all", spread evenly
const ACROSS = 8; // images side by side
let about = null;
let answer = null;

function make(tag, fields = {}, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").className = wrong ? "wrong" : "";
}

async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const reply = await fetch(path, options || {});
  const content = await reply.json();
  if (!reply.ok) throw new Error(content.error);
  return content;
}

async function start() {
  about = await ask("/api/run");
  document.title = at("run").textContent = about.run;
  at("about").textContent =
    `${about.system.replaceAll("_", "-").toUpperCase()}, knows ${about.vocabulary.toLocaleString("en")} words`;
  at("caption").maxLength = about.most_characters;
  const images = (each) => `after ${Number(each).toLocaleString("en")} images`;
  const newest = about.checkpoints.at(-1);
  const options = about.checkpoints.map((each) => [each, images(each)]).reverse();
  if (options.length > 1) options.push(["all", "over all checkpoints"]);
  at("checkpoint").replaceChildren(
    ...options.map(([value, text]) => make("option", { value, textContent: text })),
  );
  at("checkpoint").value = about.checkpoints.includes(about.checkpoint) ? about.checkpoint : newest;
}

// Words outside of braces become buttons: a click makes a place for what it is swapped with.
function offerSwaps() {
  const box = at("caption");
  const words = [...box.value.matchAll(/\{[^}]*\}?|[^\s{}]+/g)].filter(([word]) => word[0] !== "{");
  at("words").replaceChildren(
    ...words.map((found) => {
      const [word] = found;
      const swap = () => {
        const before = `${box.value.slice(0, found.index)}{${word},`;
        box.value = `${before}}${box.value.slice(found.index + word.length)}`;
        box.focus();
        box.setSelectionRange(before.length, before.length);
        offerSwaps();
      };
      return make("button", { type: "button", textContent: word, title: `swap ${word}`, onclick: swap });
    }),
  );
}

function chosenCheckpoints() {
  if (at("checkpoint").value !== "all") return [at("checkpoint").value];
  const all = about.checkpoints;
  const count = Math.min(SEVERAL, all.length);
  const step = (all.length - 1) / Math.max(1, count - 1);
  return [...new Set(Array.from({ length: count }, (_, i) => all[Math.round(i * step)]))];
}

async function generate(event) {
  event.preventDefault();
  at("go").disabled = true;
  say("generating…");
  const begun = performance.now();
  try {
    answer = await ask("/api/images", {
      captions: at("caption").value.split("\n").map((line) => line.trim()).filter(Boolean),
      seed: Number(at("seed").value),
      columns: Number(at("columns").value),
      checkpoints: chosenCheckpoints(),
    });
    show();
    say(`${((performance.now() - begun) / 1000).toFixed(1)} s`);
  } catch (error) {
    say(error.message, true);
  } finally {
    at("go").disabled = false;
  }
}

const png = (data) => `data:image/png;base64,${data}`;

function show() {
  const several = new Set(answer.rows.map((row) => row.checkpoint)).size > 1;
  at("rows").replaceChildren(...answer.rows.map((row) => showRow(row, several)));
  const blocks = answer.rows[0].images[0].masks.length;
  at("masking").hidden = !blocks;
  at("block").max = blocks;
  at("attending").hidden = !answer.rows[0].images[0].attention.length;
  at("commands").textContent = answer.commands.join("\n");
  at("result").hidden = false;
  showMasks();
  offerDownloads();
}

function showRow(row, several) {
  const images = row.images.map((image) => {
    const name = `${row.caption.replace(/[^\w-]+/g, "_").slice(0, 60)}-${answer.seed}-${image.noise}.png`;
    const source = png(image.png);
    return make(
      "figure", {},
      make("img", { className: "picture", src: source, alt: row.caption, title: `noise ${image.noise}` }),
      make("img", { className: "over", alt: "", hidden: true }),
      make("a", { href: source, download: name, textContent: "PNG" }),
    );
  });
  const caption = make("p", { className: "caption" });
  if (row.images[0].attention.length) caption.append(...attentionWords(row, images));
  else caption.append(row.caption);
  if (several) {
    const text = `after ${Number(row.checkpoint).toLocaleString("en")} images`;
    caption.append(make("small", { textContent: text }));
  }
  const notes = row.notes.map((note) => make("p", { className: "notes", textContent: note }));
  const grid = make("div", { className: "images" }, ...images);
  grid.style.setProperty("--columns", Math.min(images.length, ACROSS));
  return make("div", { className: "row" }, caption, ...notes, grid);
}

function attentionWords(row, figures) {
  const buttons = row.words.map((word, place) => {
    const look = () => {
      const on = buttons[place].ariaPressed !== "true";
      buttons.forEach((each) => (each.ariaPressed = "false"));
      buttons[place].ariaPressed = String(on);
      figures.forEach((figure, n) => overlay(figure, on ? row.images[n].attention[place] : null));
    };
    return make("button", { type: "button", textContent: word, ariaPressed: "false", onclick: look });
  });
  return buttons;
}

function overlay(figure, data) {
  const over = figure.querySelector(".over");
  over.hidden = !data;
  if (data) over.src = png(data);
}

function showMasks() {
  const block = Number(at("block").value);
  at("shown").textContent = block ? String(block) : "none";
  const images = answer.rows.flatMap((row) => row.images);
  if (!images[0].masks.length) return;
  document.querySelectorAll("figure").forEach((figure, n) =>
    overlay(figure, block ? images[n].masks[block - 1] : null));
}

// The record without pixels: an image's hash says which it is.
function offerDownloads() {
  const plain = { ...answer, rows: answer.rows.map((row) => ({
    ...row, images: row.images.map(({ noise, sha256 }) => ({ noise, sha256 })) })) };
  const blob = new Blob([JSON.stringify(plain, null, 2)], { type: "application/json" });
  URL.revokeObjectURL(at("record").href);
  at("record").href = URL.createObjectURL(blob);
  const pictures = [...document.querySelectorAll(".picture")];
  Promise.all(pictures.map((picture) => picture.decode())).then(() => drawAll(pictures));
}

function drawAll(pictures) {
  const columns = answer.columns;
  const side = pictures[0].naturalWidth;
  const gap = 2;
  const across = (count) => count * (side + gap) - gap;
  const canvas = make("canvas", { width: across(columns), height: across(pictures.length / columns) });
  const context = canvas.getContext("2d");
  pictures.forEach((picture, n) =>
    context.drawImage(picture, (n % columns) * (side + gap), Math.floor(n / columns) * (side + gap)));
  canvas.toBlob((blob) => {
    URL.revokeObjectURL(at("all").href);
    at("all").href = URL.createObjectURL(blob);
  });
}

at("ask").addEventListener("submit", generate);
at("caption").addEventListener("input", offerSwaps);
at("caption").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("dice").addEventListener("click", () => {
  at("seed").value = Math.floor(Math.random() * 2 ** 31);
  if (at("caption").value) at("ask").requestSubmit();
});
at("block").addEventListener("input", showMasks);
start().catch((error) => say(error.message, true));
