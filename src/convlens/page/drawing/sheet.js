// All maps of a wide layer, a page at a time, in the order of their effect.

import { ask, bytesOf } from "../fetching.js";
import { colour, depicted } from "./colours.js";
import { h, roving, within } from "./elements.js";
import { change } from "../state.js";
import { say } from "../words.js";

const PAGE = 64;

export function sheet({ layer, common, now }) {
  const pages = Math.ceil(layer.channels / PAGE), page = Math.min(Math.max(Number(now.page || 1), 1), pages);
  const maps = h("div", { class: "sheet-maps", role: "group", "aria-label": say("sheet.title", { count: layer.channels }) });
  within(maps, async () => {
    const found = await ask("maps", { ...common, from: (page - 1) * PAGE, count: PAGE });
    const bytes = bytesOf(found.data), [height, width] = found.size, extent = Math.max(Math.abs(found.low), Math.abs(found.high), 1e-12);
    maps.replaceChildren(...found.channels.map((channel, i) => {
      const unit = height * width === 1;
      const image = unit ? null : h("img", { class: "pixels", alt: "" });
      const button = h("button", { class: `map${unit ? " unit" : ""}`, "aria-pressed": String(channel === now.channel), "aria-label": say("channel", { channel }), title: say("channel", { channel }),
        onclick: () => change({ channel, row: "", column: "", in: "" }) }, image);
      if (unit) button.style.backgroundColor = colour((found.low + (bytes[i] / 255) * (found.high - found.low)) / extent);
      else image.src = depicted(bytes.subarray(i * height * width, (i + 1) * height * width), height, width, found.low, found.high);
      return button;
    }));
    roving(maps, "button");
  });
  const turn = (to) => change({ page: to });
  return h("div", { class: "sheet" },
    h("div", { class: "row" }, h("h3", {}, say("sheet.title", { count: layer.channels })),
      pages > 1 ? h("div", { class: "row" }, h("button", { disabled: page === 1, data: { keep: "back" }, "aria-label": say("sheet.back"), onclick: () => turn(page - 1) }, "←"),
        h("span", { class: "soft" }, say("sheet.page", { page, pages })), h("button", { disabled: page === pages, data: { keep: "on" }, "aria-label": say("sheet.on"), onclick: () => turn(page + 1) }, "→")) : ""),
    maps);
}
