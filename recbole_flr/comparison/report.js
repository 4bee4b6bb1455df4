
"use strict";
// A click on the head of a column sorts the table by it: numbers from the largest, texts from A. A second click reverses it.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = button.closest("table").tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const value = row => row.children[column].dataset.value;
    const rows = [...body.rows], known = rows.filter(row => value(row) !== undefined && value(row) !== "");
    const numbers = known.length > 0 && known.every(row => !Number.isNaN(Number(value(row))));
    const first = numbers ? "descending" : "ascending", second = numbers ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    const text = row => row.children[column].textContent;
    const compare = (a, b) => numbers ? Number(value(a)) - Number(value(b)) : text(a).localeCompare(text(b));
    const others = numbers ? rows.filter(row => !known.includes(row)) : [];
    const sorted = (numbers ? known : rows).sort(compare);
    if (order === "descending") sorted.reverse();
    body.append(...sorted, ...others);
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
  });
}
