// Not a module: those are not read from the disk, where this one shows what to do instead.
addEventListener("DOMContentLoaded", () => {
  document.getElementById("from-disk").hidden = location.protocol !== "file:";
});
