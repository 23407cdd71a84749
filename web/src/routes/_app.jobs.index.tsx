import { Button, Checkbox, Group, MultiSelect, Select, Table, Text, TextInput } from "@mantine/core";
import { useDebouncedCallback } from "@mantine/hooks";
import { IconListDetails, IconX } from "@tabler/icons-react";
import { useInfiniteQuery, useQuery, useQueryClient } from "@tanstack/react-query";
import { createFileRoute, Link, useNavigate } from "@tanstack/react-router";
import { useState } from "react";
import { useTranslation } from "react-i18next";
import * as v from "valibot";
import { api, data, type Job } from "@/api/client";
import { accountsQuery, jobsQuery, queryKeys } from "@/api/queries";
import { Confirm, Empty, Page, Rows, StateBadge } from "@/components/parts";
import { TableCard } from "@/components/table-card";
import { ago, dateTime, duration, useNow } from "@/lib/format";
import { sayDone, sayError, useSession } from "@/lib/session";

const states = ["queued", "dispatched", "running", "succeeded", "failed", "cancelled", "expired"] as const;
const text = v.optional(v.fallback(v.optional(v.string()), undefined));

export const Route = createFileRoute("/_app/jobs/")({
  validateSearch: v.object({
    state: v.optional(v.fallback(v.optional(v.array(v.picklist(states))), undefined)),
    account: text,
    client: text,
    model: text,
    metadata: text,
    batch: text,
  }),
  component: Jobs,
});

const isOver = (job: Job) => !["queued", "dispatched", "running"].includes(job.state);

function Jobs() {
  const { t } = useTranslation();
  const filter = Route.useSearch();
  const {
    data: pages,
    hasNextPage,
    fetchNextPage,
    isFetchingNextPage,
    error,
  } = useInfiniteQuery(jobsQuery(filter));
  const [selected, setSelected] = useState<Set<string>>(new Set());
  const now = useNow();
  const { may, client } = useSession();
  const jobs = pages?.pages.flatMap((page) => page.jobs) ?? [];
  const mine = (job: Job) => may("operate") || (may("submit") && job.client === client);
  const chosen = jobs.filter((job) => selected.has(job.id) && mine(job));
  const filtered = Object.values(filter).some((value) => (Array.isArray(value) ? value.length : value));
  const choosable = jobs.filter(mine);
  const toggle = (id: string, on: boolean) => {
    const next = new Set(selected);
    if (on) next.add(id);
    else next.delete(id);
    setSelected(next);
  };
  return (
    <Page title={t("jobs.title")} actions={<Bulk jobs={chosen} onDone={() => setSelected(new Set())} />}>
      <Filters filtered={filtered} />
      <TableCard label={t("jobs.title")} minWidth={820}>
        {error ? (
          <Empty title={t("common.error")} text={error.message} />
        ) : !pages ? (
          <Rows count={10} />
        ) : jobs.length === 0 ? (
          <Empty
            icon={<IconListDetails size={28} stroke={1.4} />}
            title={t(filtered ? "jobs.emptyFiltered" : "jobs.empty")}
            text={t(filtered ? "jobs.emptyFilteredText" : "jobs.emptyText")}
            action={
              filtered ? (
                <Button variant="default" renderRoot={(props) => <Link to="/jobs" search={{}} {...props} />}>
                  {t("common.clear")}
                </Button>
              ) : (
                <Button renderRoot={(props) => <Link to="/playground" {...props} />}>
                  {t("overview.openPlayground")}
                </Button>
              )
            }
          />
        ) : (
          <Table highlightOnHover>
            <Table.Thead>
              <Table.Tr>
                <Table.Th w={40}>
                  {choosable.length > 0 && (
                    <Checkbox
                      size="xs"
                      aria-label={t("jobs.selectAll")}
                      checked={chosen.length === choosable.length}
                      indeterminate={chosen.length > 0 && chosen.length < choosable.length}
                      onChange={(event) =>
                        setSelected(
                          new Set(event.currentTarget.checked ? choosable.map((job) => job.id) : []),
                        )
                      }
                    />
                  )}
                </Table.Th>
                <Table.Th w={130}>{t("jobs.state")}</Table.Th>
                <Table.Th>{t("jobs.job")}</Table.Th>
                <Table.Th>{t("jobs.client")}</Table.Th>
                <Table.Th>{t("jobs.account")}</Table.Th>
                <Table.Th>{t("jobs.model")}</Table.Th>
                <Table.Th ta="right">{t("jobs.attempts")}</Table.Th>
                <Table.Th ta="right">{t("jobs.took")}</Table.Th>
                <Table.Th ta="right">{t("jobs.created")}</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {jobs.map((job) => (
                <Table.Tr key={job.id}>
                  <Table.Td>
                    {mine(job) && (
                      <Checkbox
                        size="xs"
                        aria-label={t("jobs.select", { id: job.id })}
                        checked={selected.has(job.id)}
                        onChange={(event) => toggle(job.id, event.currentTarget.checked)}
                      />
                    )}
                  </Table.Td>
                  <Table.Td>
                    <StateBadge
                      state={job.state}
                      cancelling={job.cancel_requested}
                      scheduled={Boolean(job.run_at)}
                    />
                  </Table.Td>
                  <Table.Td>
                    <Link to="/jobs/$id" params={{ id: job.id }} className="row-link mono">
                      {job.id.slice(0, 8)}…{job.id.slice(-6)}
                    </Link>
                  </Table.Td>
                  <Table.Td>{job.client}</Table.Td>
                  <Table.Td>
                    {job.account ?? (
                      <Text span c="dimmed" inherit>
                        –
                      </Text>
                    )}
                  </Table.Td>
                  <Table.Td>
                    {job.model ?? (
                      <Text span c="dimmed" inherit>
                        {t("common.any")}
                      </Text>
                    )}
                  </Table.Td>
                  <Table.Td ta="right" className="num">
                    {job.attempt}
                  </Table.Td>
                  <Table.Td ta="right" className="num">
                    {took(job, now)}
                  </Table.Td>
                  <Table.Td ta="right" className="num" c="dimmed" title={dateTime(job.created_at)}>
                    {ago(job.created_at, now)}
                  </Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        )}
      </TableCard>
      {hasNextPage && (
        <Group justify="center">
          <Button variant="default" loading={isFetchingNextPage} onClick={() => fetchNextPage()}>
            {t("common.more")}
          </Button>
        </Group>
      )}
    </Page>
  );
}

function took(job: Job, now: number) {
  const from = new Date(job.started_at ?? job.created_at).getTime();
  if (job.finished_at) return duration(new Date(job.finished_at).getTime() - from);
  return job.state === "running" ? duration(now - from) : "–";
}

function Filters({ filtered }: { filtered: boolean }) {
  const { t } = useTranslation();
  const filter = Route.useSearch();
  const navigate = useNavigate({ from: Route.fullPath });
  const { data: accounts } = useQuery(accountsQuery);
  const set = (change: Partial<typeof filter>) =>
    navigate({ search: (before) => ({ ...before, ...change }), replace: true });
  const setLater = useDebouncedCallback(set, 250);
  const input = (name: "client" | "model" | "metadata", hint?: string) => (
    <TextInput
      key={`${name}${filtered}`}
      aria-label={t(`jobs.${name}`)}
      placeholder={`${t(`jobs.${name}`)}${hint ? ` ${hint}` : ""}`}
      defaultValue={filter[name]}
      onChange={(event) => setLater({ [name]: event.currentTarget.value || undefined })}
      w={{ base: "calc(50% - 8px)", sm: 160 }}
    />
  );
  return (
    <Group gap="xs" component="search" aria-label={t("common.filters")}>
      <MultiSelect
        aria-label={t("jobs.state")}
        placeholder={filter.state?.length ? "" : t("jobs.state")}
        data={states.map((value) => ({ value, label: t(`state.${value}`) }))}
        value={filter.state ?? []}
        onChange={(state) => set({ state: state.length ? state : undefined })}
        w={{ base: "100%", sm: "auto" }}
        miw={160}
        clearable
        clearButtonProps={{ "aria-label": t("common.clear") }}
      />
      <Select
        aria-label={t("jobs.account")}
        placeholder={t("jobs.account")}
        data={accounts?.map((account) => account.id) ?? (filter.account ? [filter.account] : [])}
        value={filter.account ?? null}
        onChange={(account) => set({ account: account ?? undefined })}
        w={{ base: "calc(50% - 8px)", sm: 160 }}
        clearable
        searchable
        clearButtonProps={{ "aria-label": t("common.clear") }}
      />
      {input("client")}
      {input("model")}
      {input("metadata", t("jobs.metadataHint"))}
      {filter.batch && (
        <Button
          variant="light"
          rightSection={<IconX size={14} aria-hidden />}
          aria-label={t("jobs.anyBatch", { batch: filter.batch })}
          onClick={() => set({ batch: undefined })}
        >
          {t("jobs.ofBatch", { batch: filter.batch.slice(-6) })}
        </Button>
      )}
      {filtered && (
        <Button variant="subtle" color="gray" c="dimmed" onClick={() => navigate({ search: {} })}>
          {t("common.clear")}
        </Button>
      )}
    </Group>
  );
}

/** Cancels or retries the jobs that are selected, those of them for which it can be. */
function Bulk({ jobs, onDone }: { jobs: Job[]; onDone: () => void }) {
  const { t } = useTranslation();
  const queries = useQueryClient();
  const [asked, setAsked] = useState<"cancel" | "retry">();
  const [busy, setBusy] = useState(false);
  const cancellable = jobs.filter((job) => !isOver(job));
  const retriable = jobs.filter(isOver);
  if (jobs.length === 0) return null;
  const run = async (action: "cancel" | "retry") => {
    const some = action === "cancel" ? cancellable : retriable;
    setBusy(true);
    let refused: Error | undefined;
    let done = 0;
    // A few at a time: the API is shared.
    const waiting = [...some];
    const work = async () => {
      for (let job = waiting.pop(); job; job = waiting.pop()) {
        const path = { params: { path: { id: job.id } } };
        try {
          await data<unknown>(
            action === "cancel"
              ? api.POST("/api/jobs/{id}/cancel", path)
              : api.POST("/api/jobs/{id}/retry", path),
          );
          done += 1;
        } catch (error) {
          refused = error as Error;
        }
      }
    };
    await Promise.all(Array.from({ length: 4 }, work));
    setBusy(false);
    setAsked(undefined);
    if (done) sayDone(t("jobs.done", { count: done }));
    if (refused) sayError(refused);
    queries.invalidateQueries({ queryKey: queryKeys.jobs });
    onDone();
  };
  const count = asked === "cancel" ? cancellable.length : retriable.length;
  return (
    <Group gap="xs">
      <Text size="sm" c="dimmed" aria-live="polite">
        {t("common.selected", { count: jobs.length })}
      </Text>
      {cancellable.length > 0 && (
        <Button variant="default" size="xs" onClick={() => setAsked("cancel")}>
          {t("jobs.cancelSelected", { count: cancellable.length })}
        </Button>
      )}
      {retriable.length > 0 && (
        <Button variant="default" size="xs" onClick={() => setAsked("retry")}>
          {t("jobs.retrySelected", { count: retriable.length })}
        </Button>
      )}
      {asked && (
        <Confirm
          opened
          title={t(`jobs.${asked}Title`, { count })}
          text={t(`jobs.${asked}Text`, { count })}
          confirm={t(asked === "cancel" ? "jobs.confirmCancel" : "jobs.confirmRetry", { count })}
          danger={asked === "cancel"}
          busy={busy}
          onClose={() => setAsked(undefined)}
          onConfirm={() => run(asked)}
        />
      )}
    </Group>
  );
}
