// Uses every call of dicomweb-client against a DICOMweb server, and prints what each gave.
//
//   node dicomweb_client.cjs FOLDER BASE-URL FILE... < uids.json
//
// FOLDER holds node_modules; the FILEs are stored; uids.json names an instance of them with three frames or more.
"use strict";
const { createHash } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { createRequire } = require("node:module");

const [folder, base, ...files] = process.argv.slice(2);
const { api, utils } = createRequire(`${folder}/`)("dicomweb-client");

console.debug = () => {}; // of thumbnails it tells even when it is told to be quiet

// What browsers have and Node has not, over fetch: as much of it as the client uses.
globalThis.XMLHttpRequest = class {
  responseType = "";
  #headers = {};
  open(method, url) {
    Object.assign(this, { method, url });
  }
  setRequestHeader(name, value) {
    this.#headers[name] = value;
  }
  getResponseHeader(name) {
    return this.answer.headers.get(name);
  }
  getAllResponseHeaders() {
    return [...this.answer.headers].map(([name, value]) => `${name}: ${value}\r\n`).join("");
  }
  async send(data) {
    this.onloadstart?.();
    const options = { method: this.method.toUpperCase(), headers: this.#headers, body: data };
    this.answer = await fetch(this.url, options);
    this.status = this.answer.status;
    const bytes = await this.answer.arrayBuffer();
    this.onprogress?.({ loaded: bytes.byteLength });
    const text = () => Buffer.from(bytes).toString();
    if (this.responseType === "arraybuffer") this.response = bytes;
    else this.response = this.responseType === "json" ? JSON.parse(text() || "null") : text();
    this.readyState = 4;
    this.onreadystatechange();
    this.onloadend?.();
  }
};

const called = new Set();
const methods = Object.getOwnPropertyNames(api.DICOMwebClient.prototype);
const offered = methods.filter((name) => name !== "constructor" && !name.startsWith("_"));
for (const name of offered) {
  const original = api.DICOMwebClient.prototype[name];
  api.DICOMwebClient.prototype[name] = function (...given) {
    called.add(name);
    return original.apply(this, given);
  };
}

const told = (buffer) => {
  const bytes = Buffer.from(buffer);
  return {
    start: bytes.subarray(0, 8).toString("latin1"),
    length: bytes.length,
    sha256: createHash("sha256").update(bytes).digest("hex"),
  };
};
const all = (buffers) => buffers.map(told);

async function main() {
  const uids = JSON.parse(readFileSync(0));
  const { studyInstanceUID, seriesInstanceUID } = uids;
  let hooked = 0;
  const hook = (request, metadata) => {
    hooked += metadata.url.startsWith(base) ? 1 : 0;
    return request;
  };
  const client = new api.DICOMwebClient({ url: base, requestHooks: [hook], verbose: false });
  client.setVerbose(false);
  client.setDebug(false);

  const out = { settings: [client.getVerbose(), client.getDebug()] };
  const datasets = files.map((name) => {
    const { buffer, byteOffset, length } = readFileSync(name);
    return buffer.slice(byteOffset, byteOffset + length);
  });
  out.stored = JSON.parse(await client.storeInstances({ datasets }));
  out.storedAgain = JSON.parse(await client.storeInstances({ studyInstanceUID, datasets }));
  out.refused = await client.storeInstances({ studyInstanceUID: "1.9.9", datasets }).catch((error) => error.status);

  const queryParams = { PatientID: "P1", limit: 5, includefield: "StudyDescription" };
  out.studies = await client.searchForStudies({ queryParams });
  out.nobody = await client.searchForStudies({ queryParams: { PatientID: "nobody" } });
  out.series = await client.searchForSeries({ studyInstanceUID });
  out.allSeries = await client.searchForSeries();
  out.instances = await client.searchForInstances({ studyInstanceUID, seriesInstanceUID });
  out.allInstances = await client.searchForInstances({ queryParams: { limit: 2 } });

  out.studyMetadata = await client.retrieveStudyMetadata(uids);
  out.seriesMetadata = await client.retrieveSeriesMetadata(uids);
  const [metadata] = await client.retrieveInstanceMetadata(uids);
  out.metadata = metadata;
  out.missing = await client.retrieveStudyMetadata({ studyInstanceUID: "1.9.9" }).catch((error) => error.status);

  let seen = 0;
  const request = { progressCallback: ({ loaded }) => (seen = loaded) };
  out.study = all(await client.retrieveStudy({ ...uids, request }));
  out.progressed = seen > 0;
  out.seriesFiles = all(await client.retrieveSeries(uids));
  // With media types of its own the client refuses every one: it compares "application/" with "application/dicom".
  out.instance = told(await client.retrieveInstance(uids));

  const frameNumbers = [2, 3];
  out.frames = all(await client.retrieveInstanceFrames({ ...uids, frameNumbers }));
  const kinds = [
    { mediaType: "image/jp2", transferSyntaxUID: "1.2.840.10008.1.2.4.90" },
    { mediaType: "image/jls", transferSyntaxUID: "1.2.840.10008.1.2.4.80" },
    { mediaType: "image/x-dicom-rle", transferSyntaxUID: "1.2.840.10008.1.2.5" },
    { mediaType: "application/octet-stream", transferSyntaxUID: "*" },
  ];
  out.framesAs = [];
  for (const kind of kinds) {
    const frames = await client.retrieveInstanceFrames({ ...uids, frameNumbers, mediaTypes: [kind] });
    out.framesAs.push({ mediaType: kind.mediaType, frames: all(frames), types: frames.map((one) => one.contentType) });
  }
  const either = [kinds[0], { mediaType: "application/octet-stream", transferSyntaxUID: "1.2.840.10008.1.2.1" }];
  out.framesEither = all(await client.retrieveInstanceFrames({ ...uids, frameNumbers, mediaTypes: either }));

  const png = { ...uids, mediaTypes: [{ mediaType: "image/png" }] };
  out.rendered = all(await client.retrieveInstanceRendered(uids));
  out.renderedPng = all(await client.retrieveInstanceRendered({ ...png, queryParams: { viewport: "16,16" } }));
  out.thumbnail = all(await client.retrieveInstanceThumbnail(uids));
  out.thumbnailPng = all(await client.retrieveInstanceThumbnail(png));
  const one = { frameNumbers: [2] };
  const quality = { quality: 50 };
  out.frameRendered = all(await client.retrieveInstanceFramesRendered({ ...uids, ...one, queryParams: quality }));
  out.frameRenderedPng = all(await client.retrieveInstanceFramesRendered({ ...png, ...one }));
  out.frameThumbnail = all(await client.retrieveInstanceFramesThumbnail({ ...uids, ...one }));
  out.frameThumbnailPng = all(await client.retrieveInstanceFramesThumbnail({ ...png, ...one }));

  const { BulkDataURI } = metadata["7FE00010"];
  out.bulk = all(await client.retrieveBulkData({ BulkDataURI }));
  const singles = new api.DICOMwebClient({ url: base, singlepart: true, verbose: false });
  out.bulkSingle = all(await singles.retrieveBulkData({ BulkDataURI, headers: {} }));
  out.bulkStart = all(await client.retrieveBulkData({ BulkDataURI, byteRange: [0, 4095] }).catch(() => []));
  out.uidOfBulk = utils.getSOPInstanceUIDFromUri(`${BulkDataURI.split("/bulkdata")[0]}/metadata`);

  out.wadoUri = client.buildInstanceWadoURIUrl(uids);
  const byUri = await fetch(out.wadoUri);
  out.byUri = { type: byUri.headers.get("content-type"), ...told(await byUri.arrayBuffer()) };
  out.hooked = hooked > 20;
  out.neverCalled = offered.filter((name) => !called.has(name));
  process.stdout.write(JSON.stringify(out));
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n${error.response ? Buffer.from(error.response).toString() : ""}\n`);
  process.exitCode = 1;
});
