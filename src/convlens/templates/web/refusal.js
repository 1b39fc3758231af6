// What cannot be done, by its name in words.js and what the sentence there is filled with.

export class Refusal extends Error {
  constructor(what, ...values) {
    super(`${what} ${values.join(" ")}`);
    this.told = { what, values };
  }
}
