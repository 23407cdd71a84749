import type { NewJob } from "@/api/client";

/** The job as it would be submitted, without what is not set. */
export function tidy(job: NewJob): NewJob {
  const set = Object.entries(job).filter(([, value]) => {
    if (value === undefined || value === null || value === "") return false;
    if (Array.isArray(value)) return value.length > 0;
    return typeof value !== "object" || Object.keys(value).length > 0;
  });
  return Object.fromEntries(set) as NewJob;
}

/** For a POSIX shell: nothing in it is more than text. */
const shell = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;

const origin = () => window.location.origin;

export function curl(job: NewJob): string {
  return `curl -s ${origin()}/api/jobs \\
  -H "Authorization: Bearer $SLUICE_KEY" \\
  -H 'Content-Type: application/json' \\
  -d ${shell(JSON.stringify(tidy(job), null, 2))}`;
}

export function python(job: NewJob): string {
  // A JSON text is a string literal of Python's, too, but true, false and null are not its words.
  return `import json, os, urllib.request

job = json.loads(${JSON.stringify(JSON.stringify(tidy(job)))})

def call(path, body=None):
    request = urllib.request.Request(
        "${origin()}" + path,
        data=json.dumps(body).encode() if body else None,
        headers={
            "Authorization": "Bearer " + os.environ["SLUICE_KEY"],
            "Content-Type": "application/json",
        },
    )
    return json.load(urllib.request.urlopen(request))

receipt = call("/api/jobs", job)
done = call(receipt["url"] + "?wait=60s")
print(done["state"], done.get("result", {}).get("text"))`;
}

export function rust(job: NewJob): string {
  const json = JSON.stringify(tidy(job), null, 4).replaceAll("\n", "\n    ");
  return `// reqwest with the features json and rustls-tls, serde_json, tokio
let client = reqwest::Client::new();
let key = std::env::var("SLUICE_KEY")?;
let receipt: serde_json::Value = client
    .post("${origin()}/api/jobs")
    .bearer_auth(&key)
    .json(&serde_json::json!(${json}))
    .send().await?
    .error_for_status()?
    .json().await?;
let url = format!("${origin()}{}?wait=60s", receipt["url"].as_str().unwrap_or_default());
let job: serde_json::Value = client.get(url).bearer_auth(&key).send().await?.json().await?;
println!("{} {}", job["state"], job["result"]["text"]);`;
}
