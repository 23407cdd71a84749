import { infiniteQueryOptions, queryOptions } from "@tanstack/react-query";
import { api, type Batch, type DeliveryState, data, type EventKind, type JobState } from "./client";

export const queryKeys = {
  session: ["session"],
  overview: ["overview"],
  jobs: ["jobs"],
  job: (id: string) => ["job", id],
  accounts: ["accounts"],
  workers: ["workers"],
  keys: ["keys"],
  batches: ["batches"],
  batch: (id: string) => ["batches", id],
  webhooks: ["webhooks"],
  webhook: (id: string) => ["webhooks", id],
  deliveries: ["deliveries"],
  delivery: (id: string) => ["deliveries", id],
  health: ["health"],
} as const;

export type JobFilter = {
  state?: JobState[] | undefined;
  account?: string | undefined;
  client?: string | undefined;
  model?: string | undefined;
  metadata?: string | undefined;
  batch?: string | undefined;
};

export type DeliveryFilter = {
  webhook?: string | undefined;
  state?: DeliveryState[] | undefined;
  type?: EventKind[] | undefined;
  job?: string | undefined;
};

/** How often what no event tells is looked at again. */
const SLOW = 5_000;

export const sessionQuery = queryOptions({
  queryKey: queryKeys.session,
  queryFn: () => data(api.GET("/api/session")),
  staleTime: Number.POSITIVE_INFINITY,
  retry: false,
});

export const overviewQuery = queryOptions({
  queryKey: queryKeys.overview,
  queryFn: () => data(api.GET("/api/overview")),
  refetchInterval: SLOW,
});

export const accountsQuery = queryOptions({
  queryKey: queryKeys.accounts,
  queryFn: async () => (await data(api.GET("/api/accounts"))).accounts,
  refetchInterval: SLOW,
});

export const workersQuery = queryOptions({
  queryKey: queryKeys.workers,
  queryFn: async () => (await data(api.GET("/api/workers"))).workers,
  refetchInterval: SLOW,
});

export const keysQuery = queryOptions({
  queryKey: queryKeys.keys,
  queryFn: async () => (await data(api.GET("/api/keys"))).keys,
});

export const healthQuery = queryOptions({
  queryKey: queryKeys.health,
  queryFn: async () => {
    // 503 comes with the same body: it says what is down.
    const { data: up, error } = await api.GET("/health");
    return up ?? (error as NonNullable<typeof up>);
  },
  refetchInterval: SLOW,
});

export const jobQuery = (id: string) =>
  queryOptions({
    queryKey: queryKeys.job(id),
    queryFn: () => data(api.GET("/api/jobs/{id}", { params: { path: { id } } })),
  });

export const jobsQuery = (filter: JobFilter) =>
  infiniteQueryOptions({
    queryKey: [...queryKeys.jobs, filter],
    queryFn: ({ pageParam }) => {
      const [key, value] = (filter.metadata ?? "").split("=", 2);
      const query: Record<string, string> = { limit: "50" };
      if (filter.state?.length) query.state = filter.state.join(",");
      for (const name of ["account", "client", "model", "batch"] as const) {
        const text = filter[name];
        if (text) query[name] = text;
      }
      if (key && value) query[`metadata.${key}`] = value;
      if (pageParam) query.cursor = pageParam;
      return data(api.GET("/api/jobs", { params: { query: query as never } }));
    },
    initialPageParam: "",
    getNextPageParam: (page) => page.next_cursor ?? undefined,
  });

export const batchesQuery = (client: string | undefined) =>
  infiniteQueryOptions({
    queryKey: [...queryKeys.batches, "list", client],
    queryFn: ({ pageParam }) =>
      data(
        api.GET("/api/batches", {
          params: {
            query: { limit: 50, ...(client ? { client } : {}), ...(pageParam ? { cursor: pageParam } : {}) },
          },
        }),
      ),
    initialPageParam: "",
    getNextPageParam: (page) => page.next_cursor ?? undefined,
  });

const readBatch = (id: string): Promise<Batch> =>
  data(api.GET("/api/batches/{id}", { params: { path: { id } } }));

export const batchQuery = (id: string) =>
  queryOptions({
    queryKey: queryKeys.batch(id),
    queryFn: () => readBatch(id),
    // The estimate moves with all that waits, not only with this batch's jobs.
    refetchInterval: ({ state }) => (state.data?.state === "ended" ? false : SLOW),
  });

/** When a batch may end, which a list does not tell: asked for apart from it, and seldom. */
export const estimateQuery = (id: string) =>
  queryOptions({
    queryKey: ["batch-estimate", id],
    queryFn: async () => (await readBatch(id)).estimated_end_at ?? null,
    staleTime: 2 * SLOW,
    refetchInterval: 2 * SLOW,
  });

export const webhooksQuery = queryOptions({
  queryKey: queryKeys.webhooks,
  queryFn: async () => (await data(api.GET("/api/webhooks"))).webhooks,
  refetchInterval: SLOW,
});

export const webhookQuery = (id: string) =>
  queryOptions({
    queryKey: queryKeys.webhook(id),
    queryFn: () => data(api.GET("/api/webhooks/{id}", { params: { path: { id } } })),
    refetchInterval: SLOW,
  });

const asked = (filter: DeliveryFilter & { from?: string }) => ({
  ...(filter.webhook ? { webhook: filter.webhook } : {}),
  ...(filter.job ? { job: filter.job } : {}),
  ...(filter.state?.length ? { state: filter.state.join(",") } : {}),
  ...(filter.type?.length ? { type: filter.type.join(",") } : {}),
  ...(filter.from ? { from: filter.from } : {}),
});

export const deliveriesQuery = (filter: DeliveryFilter) =>
  infiniteQueryOptions({
    queryKey: [...queryKeys.deliveries, "list", filter],
    queryFn: ({ pageParam }) =>
      data(
        api.GET("/api/deliveries", {
          params: { query: { ...asked(filter), limit: 50, ...(pageParam ? { cursor: pageParam } : {}) } },
        }),
      ),
    initialPageParam: "",
    getNextPageParam: (page) => page.next_cursor ?? undefined,
    refetchInterval: SLOW,
  });

/** The newest deliveries of an endpoint, few enough to be shown in a row of a table. */
export const lastDeliveriesQuery = (webhook: string) =>
  queryOptions({
    queryKey: [...queryKeys.deliveries, "last", webhook],
    queryFn: async () =>
      (await data(api.GET("/api/deliveries", { params: { query: { webhook, limit: 5 } } }))).deliveries,
    refetchInterval: SLOW,
  });

/** The most deliveries that are counted before they are sent anew. */
export const COUNTED = 500;

export const countDeliveriesQuery = (filter: DeliveryFilter & { from: string }) =>
  queryOptions({
    queryKey: [...queryKeys.deliveries, "count", filter],
    queryFn: async () => {
      const page = await data(
        api.GET("/api/deliveries", { params: { query: { ...asked(filter), limit: COUNTED } } }),
      );
      return { count: page.deliveries.length, more: Boolean(page.next_cursor) };
    },
  });

export const deliveryQuery = (id: string) =>
  queryOptions({
    queryKey: queryKeys.delivery(id),
    queryFn: () => data(api.GET("/api/deliveries/{id}", { params: { path: { id } } })),
    refetchInterval: ({ state }) => (state.data?.state === "pending" ? 1_000 : SLOW),
  });
