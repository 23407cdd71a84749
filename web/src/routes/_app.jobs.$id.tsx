import { Button, Grid, Group, Stack, Tabs, Text } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { createFileRoute, Link, useNavigate } from "@tanstack/react-router";
import { useTranslation } from "react-i18next";
import { ApiError, api, data, type Job, type NewJob } from "@/api/client";
import { jobQuery, queryKeys } from "@/api/queries";
import { Answer } from "@/components/answer";
import { Code, Confirm, Copy, Details, Empty, Page, Rows, Section, StateBadge } from "@/components/parts";
import { Timeline } from "@/components/timeline";
import { duration } from "@/lib/format";
import { useJobStream } from "@/lib/live";
import { sayError, useSession } from "@/lib/session";
import { curl } from "@/lib/snippets";

export const Route = createFileRoute("/_app/jobs/$id")({ component: JobPage });

type Kept = {
  messages: { role: string; content: string }[];
  system?: string;
  model?: string;
  params?: Record<string, unknown>;
};

/** The job as it was submitted, to submit it again. */
function asNew(job: Job): NewJob {
  const kept = (job.request ?? { messages: [] }) as unknown as Kept;
  const [first, ...others] = kept.messages;
  const lane = new URLSearchParams(job.lane === "any" ? "" : job.lane);
  const body: Record<string, unknown> = {
    ...(first && others.length === 0 && first.role === "user"
      ? { prompt: first.content }
      : { messages: kept.messages }),
    system: kept.system,
    model: kept.model,
    params: kept.params,
    account: lane.get("account") ?? undefined,
    tags: lane.getAll("tag"),
    priority: job.priority || undefined,
    session: job.session,
    metadata: job.metadata,
  };
  return body as NewJob;
}

function JobPage() {
  const { t } = useTranslation();
  const { id } = Route.useParams();
  const { data: job, error } = useQuery(jobQuery(id));
  const stream = useJobStream(job ? id : undefined);
  if (error instanceof ApiError && (error.status === 404 || error.status === 400)) {
    return (
      <Page title={t("job.title")}>
        <Empty
          title={t("job.notFound")}
          text={t("job.notFoundText")}
          action={
            <Button renderRoot={(props) => <Link to="/jobs" search={{}} {...props} />}>
              {t("job.toJobs")}
            </Button>
          }
        />
      </Page>
    );
  }
  if (!job) {
    return (
      <Page title={t("job.title")}>
        <Rows count={8} />
      </Page>
    );
  }
  const kept = (job.request ?? { messages: [] }) as unknown as Kept;
  return (
    <Page title={t("job.title")} actions={<Actions job={job} />}>
      <Group gap="md" mt={-12}>
        <StateBadge state={job.state} cancelling={job.cancel_requested} scheduled={Boolean(job.run_at)} />
        <Group gap={2}>
          <Text span c="dimmed" className="mono">
            {job.id}
          </Text>
          <Copy value={job.id} label={`${t("jobs.job")}: ${t("common.copy")}`} />
        </Group>
      </Group>
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, md: 8 }}>
          <Stack gap="lg">
            <Answer job={job} stream={stream} title={t("job.answer")} />
            <Section title={t("job.prompt")}>
              <Stack gap="md">
                {kept.system && (
                  <div>
                    <div className="label">{t("job.system")}</div>
                    <div className="prose">{kept.system}</div>
                  </div>
                )}
                {kept.messages.map((message, index) => (
                  // biome-ignore lint/suspicious/noArrayIndexKey: a conversation does not change
                  <div key={index}>
                    {kept.messages.length > 1 && (
                      <div className="label">{t(`job.${message.role as "user"}`)}</div>
                    )}
                    <div className="prose">{message.content}</div>
                  </div>
                ))}
              </Stack>
            </Section>
            <Tabs defaultValue="request" keepMounted={false}>
              <Tabs.List>
                <Tabs.Tab value="request">{t("job.request")}</Tabs.Tab>
                <Tabs.Tab value="result">{t("job.result")}</Tabs.Tab>
                <Tabs.Tab value="curl">curl</Tabs.Tab>
              </Tabs.List>
              <Tabs.Panel value="request" pt="sm">
                <Code text={JSON.stringify(job.request, null, 2)} label={t("job.request")} />
              </Tabs.Panel>
              <Tabs.Panel value="result" pt="sm">
                <Code
                  text={JSON.stringify(job.result ?? job.error ?? null, null, 2)}
                  label={t("job.result")}
                />
              </Tabs.Panel>
              <Tabs.Panel value="curl" pt="sm">
                <Code text={curl(asNew(job))} label="curl" />
              </Tabs.Panel>
            </Tabs>
          </Stack>
        </Grid.Col>
        <Grid.Col span={{ base: 12, md: 4 }}>
          <Stack gap="lg">
            <Section title={t("job.timeline")}>
              <Timeline job={job} />
            </Section>
            <About job={job} />
          </Stack>
        </Grid.Col>
      </Grid>
    </Page>
  );
}

function About({ job }: { job: Job }) {
  const { t } = useTranslation();
  const ms = (time: string | null | undefined) => (time ? new Date(time).getTime() : 0);
  const rows: [string, React.ReactNode][] = [
    [t("jobs.client"), job.client],
    [t("jobs.account"), job.account],
    [
      t("job.lane"),
      job.lane === "any"
        ? t("overview.anyLane")
        : [...new URLSearchParams(job.lane)].map((pair) => pair.join(" ")).join(" · "),
    ],
    [t("job.waited"), job.started_at && duration(ms(job.started_at) - ms(job.created_at))],
    [t("job.ran"), job.started_at && job.finished_at && duration(ms(job.finished_at) - ms(job.started_at))],
    [
      t("jobs.attempts"),
      job.attempt
        ? `${job.attempt} (${t("job.failures", { count: job.failures, max: job.max_attempts })})`
        : undefined,
    ],
    [t("job.priority"), String(job.priority)],
    [t("job.delivery"), job.delivery.replaceAll("_", " ")],
    [t("job.timeout"), job.timeout],
    [t("job.session"), job.session],
    [
      t("job.batch"),
      job.batch && (
        <Link to="/batches/$id" params={{ id: job.batch }} className="text-link mono">
          {job.batch.slice(0, 8)}…{job.batch.slice(-6)}
        </Link>
      ),
    ],
    [
      t("job.retryOf"),
      job.retry_of && (
        <Link to="/jobs/$id" params={{ id: job.retry_of }} className="text-link mono">
          {job.retry_of.slice(0, 8)}…
        </Link>
      ),
    ],
    ...Object.entries(job.metadata ?? {}),
  ];
  return (
    <Section title={t("job.details")}>
      <Details rows={rows} />
    </Section>
  );
}

function Actions({ job }: { job: Job }) {
  const { t } = useTranslation();
  const { may, client } = useSession();
  const queries = useQueryClient();
  const navigate = useNavigate();
  const [asks, { open, close }] = useDisclosure();
  const path = { params: { path: { id: job.id } } };
  const cancel = useMutation({
    mutationFn: () => data(api.POST("/api/jobs/{id}/cancel", path)),
    onError: sayError,
    onSettled: () => {
      close();
      queries.invalidateQueries({ queryKey: queryKeys.job(job.id) });
    },
  });
  const retry = useMutation({
    mutationFn: () => data(api.POST("/api/jobs/{id}/retry", path)),
    onSuccess: ({ id }) => navigate({ to: "/jobs/$id", params: { id } }),
    onError: sayError,
  });
  const over = Boolean(job.finished_at);
  const mine = may("operate") || (may("submit") && job.client === client);
  return (
    <Group gap="xs">
      <Copy value={curl(asNew(job))}>{t("job.curl")}</Copy>
      {may("submit") && (
        <Button
          variant="default"
          renderRoot={(props) => <Link to="/playground" search={{ from: job.id }} {...props} />}
        >
          {t("job.retryChanged")}
        </Button>
      )}
      {mine && over && (
        <Button loading={retry.isPending} onClick={() => retry.mutate()}>
          {t("job.retry")}
        </Button>
      )}
      {mine && !over && (
        <Button variant="default" disabled={job.cancel_requested ?? false} onClick={open}>
          {t("job.cancel")}
        </Button>
      )}
      <Confirm
        opened={asks}
        onClose={close}
        title={t("jobs.cancelTitle", { count: 1 })}
        text={t("jobs.cancelText", { count: 1 })}
        confirm={t("jobs.confirmCancel", { count: 1 })}
        busy={cancel.isPending}
        onConfirm={() => cancel.mutate()}
      />
    </Group>
  );
}
