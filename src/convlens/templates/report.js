"use strict";
const album = JSON.parse(document.getElementById("album").textContent);
const words = album.words;
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, key) => values[key]);
const percent = (share) => (100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 2 : 1) + "%";
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text; // never as HTML: names of files and classes are anybody's
  return element;
};

// The images of a cell, of which the button was pressed
const dialog = document.getElementById("cell");
const answer = (place) => {
  const { name, true: truth, said, p, q, src } = album.pictures[place];
  const item = make("li", truth === said ? "right" : "wrong");
  if (src) {
    const image = make("img", "thumb");
    image.src = src;
    image.alt = name;
    item.append(image);
  } else item.append(make("span", "lack", words["no image: the data was not found"]));
  const line = make("span", "said", `${album.classes[said]} ${percent(p)}`);
  item.append(line, make("br", ""));
  if (truth !== said) item.append(make("span", "", `${fill(words["true: {a}"], { a: album.classes[truth] })} ${percent(q)}`));
  item.append(make("span", "file", name));
  return item;
};
for (const button of document.querySelectorAll("[data-cell]"))
  button.addEventListener("click", () => {
    const [truth, said] = button.dataset.cell.split("-").map(Number);
    const [count, places] = album.cells[button.dataset.cell];
    const names = { a: album.classes[truth], b: album.classes[said], n: count, m: places.length };
    const some = truth === said ? "images: {n}; the {m} least sure are shown" : "images: {n}; the {m} surest are shown";
    dialog.querySelector("h2").textContent = fill(words[truth === said ? "{a}, rightly" : "{a}, taken for {b}"], names);
    dialog.querySelector("p").textContent = fill(words[places.length < count ? some : "images: {n}"], names);
    dialog.querySelector("ul").replaceChildren(...places.map(answer));
    dialog.showModal();
    dialog.scrollTop = 0;
  });
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
});

// In the matrix one cell is a stop of the Tab key, and the arrow keys go on from it
for (const table of document.querySelectorAll(".matrix")) {
  const cells = [...table.querySelectorAll("button")];
  const at = (button) => button.dataset.cell.split("-").map(Number);
  const stop = (chosen) => cells.forEach((button) => { button.tabIndex = button === chosen ? 0 : -1; });
  if (cells.length) stop(cells[0]);
  table.addEventListener("focusin", (event) => { if (event.target.dataset.cell) stop(event.target); });
  table.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
    if (!(down || right) || !event.target.dataset.cell) return;
    event.preventDefault();
    const [row, column] = at(event.target);
    const ahead = cells
      .map((button) => [button, (at(button)[0] - row) * down + (at(button)[1] - column) * right, at(button)])
      .filter(([, steps, [i, j]]) => steps > 0 && (down ? j === column : i === row))
      .sort((a, b) => a[1] - b[1]);
    if (ahead.length) ahead[0][0].focus();
  });
}

// Tables that a click on a heading sorts
for (const button of document.querySelectorAll("th > button"))
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const rising = heading.getAttribute("aria-sort") === "descending";
    const column = heading.cellIndex;
    const body = heading.closest("table").tBodies[0];
    const cell = (row) => row.cells[column];
    const order = (a, b) =>
      cell(a).dataset.value ? cell(a).dataset.value - cell(b).dataset.value
        : cell(a).textContent.localeCompare(cell(b).textContent, undefined, { numeric: true });
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => (rising ? order(a, b) : order(b, a))));
  });

// The values of a chart's column; and the part of the image that a map fires at
const box = make("div", "box");
const tip = make("div", "tip");
tip.hidden = true;
document.body.append(tip);
const point = (event) => {
  const text = event.target instanceof Element && event.target.closest("[data-tip]")?.dataset.tip;
  tip.hidden = !text;
  box.remove();
  const sees = event.target instanceof Element && event.target.closest("[data-sees]");
  if (sees) {
    const [top, left, bottom, right] = sees.dataset.sees.split(",").map(Number);
    Object.assign(box.style, { top: `${top}%`, left: `${left}%`, height: `${bottom - top}%`, width: `${right - left}%` });
    sees.closest(".example").querySelector(".seen").append(box);
  }
  if (!text) return;
  tip.textContent = text;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`;
  tip.style.top = `${event.clientY + height + 22 > innerHeight ? event.clientY - height - 12 : event.clientY + 16}px`;
};
for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, point); // a tap moves nothing
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// Light and dark
const theme = document.querySelector(".theme");
const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
const label = () => { theme.textContent = words[isDark() ? "Light page" : "Dark page"]; };
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  label();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
theme.hidden = false;
label();

for (const button of document.querySelectorAll("[data-copy]"))
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(source); // what is selected can be copied by hand where a page may not
    await navigator.clipboard?.writeText(source.textContent).then(
      () => { button.textContent = words["Copied"]; },
      () => {},
    );
  });

// On paper everything is open
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    details.dataset.shut = "";
  }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-shut]")) details.open = false;
});
