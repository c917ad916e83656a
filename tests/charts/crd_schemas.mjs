// Validates custom resources by the validators that @kubernetes-models generates of the published definitions.
//
// Reads a JSON list of manifests, writes one of their faults: `node crd_schemas.mjs FOLDER… < manifests`, where each folder is
// that of one package. The validators let unknown fields pass, so what they never read of an object is reported too.
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import path from "node:path";

const folders = Object.fromEntries(process.argv.slice(2).map((folder) => [path.basename(folder), path.resolve(folder)]));
const kinds = {
  "gateway.networking.k8s.io/v1/GRPCRoute": "gateway-api",
  "monitoring.coreos.com/v1/ServiceMonitor": "prometheus-operator",
  "monitoring.coreos.com/v1/PrometheusRule": "prometheus-operator",
  "cert-manager.io/v1/Certificate": "cert-manager",
  "keda.sh/v1alpha1/ScaledObject": "keda",
};

async function validator(kind) {
  const model = path.join(folders[kinds[kind]], `${kind}.js`);
  // The model's module names the schema that it is checked by.
  const schema = (await readFile(model, "utf8")).match(/from"([./]*\/_schemas\/[^"]+)"/)[1];
  return (await import(pathToFileURL(path.resolve(path.dirname(model), schema)))).validate;
}

const read = new Map();
function watched(value) {
  if (value === null || typeof value !== "object") return value;
  return new Proxy(value, {
    get(target, key) {
      if (!read.has(target)) read.set(target, new Set());
      read.get(target).add(key);
      return watched(target[key]);
    },
  });
}

function unread(value, at) {
  if (value === null || typeof value !== "object") return [];
  const seen = read.get(value);
  return Object.keys(value).flatMap((key) =>
    seen && !Array.isArray(value) && !seen.has(key) ? [`${at}/${key} is unknown`] : unread(value[key], `${at}/${key}`)
  );
}

let text = "";
for await (const chunk of process.stdin) text += chunk;
const faults = [];
for (const manifest of JSON.parse(text)) {
  const kind = `${manifest.apiVersion}/${manifest.kind}`;
  const name = `${manifest.kind}/${manifest.metadata.name}`;
  if (!(kind in kinds)) {
    faults.push(`${name}: no schema is known of ${kind}`);
    continue;
  }
  const validate = await validator(kind);
  if (!validate(watched(manifest))) faults.push(...validate.errors.map((e) => `${name}${e.instancePath}: ${e.keyword} ${JSON.stringify(e.params)}`));
  faults.push(...unread(manifest, name));
}
console.log(JSON.stringify(faults));
