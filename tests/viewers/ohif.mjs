// Opens studies in OHIF in a headless Chromium.
//
// arguments  the folder of playwright-core
// input      JSON: {chromium, base, list, pages: [{path, config, picture}]}; `list` and `picture` name the PNG files to write
// output     JSON: {text, pages: [{path, requests: [{url, method, status, type, range}]}], errors}
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

const { chromium } = createRequire(process.argv[2] + '/')('playwright-core');
const asked = JSON.parse(readFileSync(0, 'utf8'));

const browser = await chromium.launch({
  executablePath: asked.chromium,
  args: ['--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
    '--disable-sync', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist'],
});
const errors = [];

// Each page starts anew: what one has loaded is not to help the next.
async function fresh(config, requests) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 } });
  await context.addInitScript(() => localStorage.setItem('shownTours', '["basicViewerTour"]'));
  const page = await context.newPage();
  page.setDefaultTimeout(120000);
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('response', (response) => {
    const request = response.request();
    if (!response.url().startsWith(asked.base)) requests.push({
      url: response.url(), method: request.method(), status: response.status(),
      type: response.headers()['content-type'] ?? '', range: request.headers()['range'] ?? null,
    });
  });
  await page.route('**/app-config.js', (route) => route.fulfill({ contentType: 'text/javascript', body: config }));
  return page;
}

// Whether the picture is there: two looks see the same, and enough of it is not black.
function drawn() {
  const canvas = document.querySelector('.cornerstone-canvas');
  const copy = document.createElement('canvas');
  copy.width = canvas.width;
  copy.height = canvas.height;
  const pen = copy.getContext('2d');
  pen.drawImage(canvas, 0, 0);
  const data = pen.getImageData(0, 0, copy.width, copy.height).data;
  let hash = 0, bright = 0;
  for (let i = 0; i < data.length; i += 4) {
    hash = (hash * 31 + data[i] + data[i + 1] * 7 + data[i + 2] * 13) | 0;
    if (data[i] + data[i + 1] + data[i + 2] > 60) bright++;
  }
  const same = window.lastHash === hash;
  window.lastHash = hash;
  return same && bright > data.length / 800;
}

const list = await fresh(asked.pages[0].config, []);
await list.goto(asked.base + '/');
await list.locator('tbody tr').first().waitFor();
await list.waitForFunction(() => / of [1-9]/.test(document.body.innerText));  // it says 0 of 0 before the answer is there
await list.waitForLoadState('networkidle');
const text = await list.locator('body').innerText();
await list.screenshot({ path: asked.list });
await list.context().close();

const pages = [];
for (const { path, config, picture } of asked.pages) {
  const requests = [];
  const page = await fresh(config, requests);
  await page.goto(asked.base + path);
  const canvas = page.locator('.cornerstone-canvas').first();
  await canvas.waitFor();
  await page.waitForFunction(drawn, null, { polling: 1000 });
  await page.waitForLoadState('networkidle');
  await page.waitForFunction(drawn, null, { polling: 1000 });
  await canvas.screenshot({ path: picture });
  pages.push({ path, requests });
  await page.context().close();
}
await browser.close();
process.stdout.write(JSON.stringify({ text, pages, errors }));
