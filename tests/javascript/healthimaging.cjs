// Calls operations of the AWS SDK for JavaScript (v3), one after the other, and prints what each gave.
//
//   node healthimaging.cjs FOLDER
//
// FOLDER holds node_modules. Each line of the input is one call, {client, operation, input, pageSize?, file?}: the
// settings of the client, the operation's name, its input; with pageSize every page is fetched, and a streamed blob
// goes into the file. Each line of the output is {answer}, {pages} or {error}. {} asks for the commands never sent.
// The setting names is all that the client can look up: host name -> address.
// What JSON lacks is written {"$time": epoch milliseconds} for a Date, {"$text": text} for the bytes of a text.
"use strict";
const { writeFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const { createInterface } = require("node:readline");

const sdk = createRequire(`${process.argv[2]}/`)("@aws-sdk/client-medical-imaging");

const sent = new Set();
const clients = new Map();

function lookupAmong(names) {
  return (name, options, done) => {
    const address = names[name];
    if (address === undefined) done(Object.assign(new Error(`getaddrinfo ENOTFOUND ${name}`), { code: "ENOTFOUND" }));
    else if (options.all) done(null, [{ address, family: 4 }]);
    else done(null, address, 4);
  };
}

function clientOf(settings) {
  const key = JSON.stringify(settings);
  if (!clients.has(key)) {
    const { names = {}, ...rest } = settings;
    const requestHandler = { httpAgent: { keepAlive: true, lookup: lookupAmong(names) } };
    const client = new sdk.MedicalImagingClient({ ...rest, requestHandler });
    const noting = (next, context) => (given) => {
      sent.add(context.commandName);
      return next(given);
    };
    client.middlewareStack.add(noting, { step: "initialize" });
    clients.set(key, client);
  }
  return clients.get(key);
}

function revived(_, value) {
  if (value?.$time !== undefined) return new Date(value.$time);
  return value?.$text === undefined ? value : new TextEncoder().encode(value.$text);
}

function written(key, value) {
  return this[key] instanceof Date ? { $time: this[key].getTime() } : value;
}

async function drained(answer, file) {
  for (const [name, value] of Object.entries(answer)) {
    if (value?.transformToByteArray === undefined) continue;
    writeFileSync(file, await value.transformToByteArray());
    delete answer[name];
  }
  return answer;
}

async function called({ client, operation, input, pageSize, file }) {
  if (operation === undefined) {
    const commands = Object.keys(sdk).filter((name) => name.endsWith("Command") && !name.startsWith("$"));
    return { answer: { neverSent: commands.filter((name) => !sent.has(name)) } };
  }
  if (pageSize !== undefined) {
    const pages = [];
    const paginate = sdk[`paginate${operation}`];
    for await (const page of paginate({ client: clientOf(client), pageSize }, input)) pages.push(page);
    return { pages };
  }
  const answer = await clientOf(client).send(new sdk[`${operation}Command`](input));
  return { answer: await drained(answer, file) };
}

function told(error) {
  const { name, message, code, $fault, $metadata } = error;
  const isModelled = sdk[name] !== undefined && error.constructor === sdk[name];
  const isOfService = error instanceof sdk.MedicalImagingServiceException;
  return { error: { name, message, code, fault: $fault, status: $metadata?.httpStatusCode, isModelled, isOfService } };
}

async function main() {
  for await (const line of createInterface({ input: process.stdin })) {
    const result = await called(JSON.parse(line, revived)).catch(told);
    process.stdout.write(`${JSON.stringify(result, written)}\n`);
  }
}

main();
