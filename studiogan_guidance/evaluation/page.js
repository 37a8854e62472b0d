"use strict";

// The number of a cell, or nothing.
function number(cell) {
  return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
}

// Order two cells of a column; what is missing comes last in both directions.
function compared(first, second, isNumber, sign) {
  if (!isNumber) {
    return sign * first.textContent.localeCompare(second.textContent, "en", { numeric: true });
  }
  const values = [number(first), number(second)];
  if (values.some(Number.isNaN)) {
    return Number.isNaN(values[0]) - Number.isNaN(values[1]);
  }
  return sign * (values[0] - values[1]);
}

function sort(table, heading) {
  const headings = [...heading.parentElement.children];
  const column = headings.indexOf(heading);
  const isUp = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of headings) {
    other.setAttribute("aria-sort", "none");
  }
  heading.setAttribute("aria-sort", isUp ? "ascending" : "descending");

  const body = table.tBodies[0];
  const isNumber = heading.classList.contains("number");
  const rows = [...body.rows];
  rows.sort((a, b) => compared(a.cells[column], b.cells[column], isNumber, isUp ? 1 : -1));
  body.append(...rows);
}

// Headings become buttons, which keys press, too.
for (const table of document.querySelectorAll("table.results")) {
  for (const heading of table.tHead.rows[0].cells) {
    const title = heading.querySelector(".title");
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.textContent = title.textContent;
    button.addEventListener("click", () => sort(table, heading));
    title.replaceWith(button);
  }
}
