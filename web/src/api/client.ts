import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema";

type Schemas = components["schemas"];
export type Job = Schemas["JobView"];
export type JobState = Schemas["State"];
export type Attempt = Schemas["AttemptView"];
export type Account = Schemas["AccountView"];
export type Worker = Schemas["WorkerView"];
export type Overview = Schemas["Overview"];
export type Lane = Schemas["LaneBacklog"];
export type Key = Schemas["KeyView"];
export type CreatedKey = Schemas["CreatedKey"];
export type Scope = Schemas["Scope"];
export type Session = Schemas["SessionView"];
export type NewJob = Schemas["NewJob"];
export type JobChanges = Schemas["JobChanges"];
export type Batch = Schemas["BatchView"];
export type BatchState = Schemas["BatchState"];
export type Webhook = Schemas["WebhookView"];
export type Delivery = Schemas["DeliveryView"];
export type DeliveryDetail = Schemas["DeliveryDetail"];
export type DeliveryState = Schemas["DeliveryState"];
export type EventKind = Schemas["EventKind"];
export type Health = Schemas["Health"];
export type Problem = Schemas["Problem"];

/** What the API says when it says no, or `status` 0 when it says nothing. */
export class ApiError extends Error {
  readonly status: number;
  readonly problem: Problem | undefined;
  constructor(status: number, problem?: Problem) {
    super(problem?.detail ?? "The API does not answer.");
    this.status = status;
    this.problem = problem;
  }
}

const ours: Middleware = {
  onRequest({ request }) {
    request.headers.set("sluice-dashboard", "1");
    return request;
  },
  onError() {
    return new ApiError(0);
  },
};

export const api = createClient<paths>({ baseUrl: "/" });
api.use(ours);

/** The answer's data, or an error that says why there is none. */
export async function data<T>(
  answer: Promise<{ data?: T; error?: unknown; response: Response }>,
): Promise<T> {
  const { data, error, response } = await answer;
  if (response.ok) return data as T;
  const problem = error && typeof error === "object" && "code" in error ? (error as Problem) : undefined;
  // A proxy before an API that is gone answers without a problem document.
  throw new ApiError(problem ? response.status : response.status >= 500 ? 0 : response.status, problem);
}
