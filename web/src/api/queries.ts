import { infiniteQueryOptions, queryOptions } from "@tanstack/react-query";
import { api, data, type JobState } from "./client";

export const queryKeys = {
  session: ["session"],
  overview: ["overview"],
  jobs: ["jobs"],
  job: (id: string) => ["job", id],
  accounts: ["accounts"],
  workers: ["workers"],
  keys: ["keys"],
  health: ["health"],
} as const;

export type JobFilter = {
  state?: JobState[] | undefined;
  account?: string | undefined;
  client?: string | undefined;
  model?: string | undefined;
  metadata?: string | undefined;
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
      for (const name of ["account", "client", "model"] as const) {
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
