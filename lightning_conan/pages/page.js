// Sorts the tables: a click, Enter or Space on a heading; again for the other direction. Rows without a value stay last.
if (!window.conanTables) {
  window.conanTables = true;
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest(".conan th > button");
    if (!button) return;
    const head = button.parentElement;
    const numeric = head.classList.contains("conan-number");
    const now = head.getAttribute("aria-sort");
    const down = now === "none" ? numeric : now === "ascending"; // numbers begin with the largest
    for (const other of head.parentElement.children) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => row.cells[head.cellIndex];
    const compare = (a, b) =>
      numeric ? Number(a.dataset.value) - Number(b.dataset.value) : words.compare(a.textContent, b.textContent);
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      const empty = "empty" in a.dataset || "empty" in b.dataset;
      if (empty) return ("empty" in a.dataset) - ("empty" in b.dataset);
      return down ? compare(b, a) : compare(a, b);
    });
    body.append(...rows);
  });
}
