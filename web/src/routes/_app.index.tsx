import { Button, Card, Grid, Group, SimpleGrid, Skeleton, Stack, Table, Text } from "@mantine/core";
import { IconChartBar, IconCircleCheck, IconInbox } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { createFileRoute, Link } from "@tanstack/react-router";
import { lazy, type ReactNode, Suspense } from "react";
import { useTranslation } from "react-i18next";
import type { Account, Overview } from "@/api/client";
import { accountsQuery, overviewQuery } from "@/api/queries";
import { SteerAccount } from "@/components/accounts";
import {
  type Condition,
  ConditionBadge,
  conditionOf,
  Empty,
  Page,
  Pill,
  Rows,
  Section,
} from "@/components/parts";
import { ago, clock, compact, money, number, useNow } from "@/lib/format";

export const Route = createFileRoute("/_app/")({ component: OverviewPage });

const Chart = lazy(() => import("@/components/chart"));

function OverviewPage() {
  const { t } = useTranslation();
  const { data: overview } = useQuery(overviewQuery);
  const { data: accounts } = useQuery(accountsQuery);
  return (
    <Page title={t("overview.title")}>
      <Figures overview={overview} />
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, lg: 8 }}>
          <Section
            title={t("overview.chart")}
            aside={<span className="label">{t("overview.chartText")}</span>}
          >
            <div style={{ height: 260 }}>
              {!overview ? (
                <Skeleton height={260} />
              ) : overview.pulse.points.length === 0 ? (
                <Empty
                  icon={<IconChartBar size={28} stroke={1.4} />}
                  title={t("overview.chartEmpty")}
                  text={t("overview.chartEmptyText")}
                  action={
                    <Button renderRoot={(props) => <Link to="/playground" {...props} />}>
                      {t("overview.openPlayground")}
                    </Button>
                  }
                />
              ) : (
                <Suspense fallback={<Skeleton height={260} />}>
                  <Chart pulse={overview.pulse} at={overview.at} />
                </Suspense>
              )}
            </div>
          </Section>
        </Grid.Col>
        <Grid.Col span={{ base: 12, lg: 4 }}>
          <Attention accounts={accounts} />
        </Grid.Col>
        <Grid.Col span={12}>
          <Backlog overview={overview} />
        </Grid.Col>
        <Grid.Col span={12}>
          <Section title={t("overview.accounts")}>
            {!accounts ? (
              <Rows count={2} />
            ) : accounts.length === 0 ? (
              <Empty title={t("overview.noAccounts")} text={t("overview.noAccountsText")} />
            ) : (
              <SimpleGrid cols={{ base: 1, xs: 2, md: 3, xl: 4 }} spacing="sm">
                {accounts.map((account) => (
                  <AccountTile key={account.id} account={account} />
                ))}
              </SimpleGrid>
            )}
          </Section>
        </Grid.Col>
      </Grid>
    </Page>
  );
}

function Figure({ label, value, note }: { label: string; value: ReactNode; note: ReactNode }) {
  return (
    <Card padding="md">
      <div className="label">{label}</div>
      <div className="figure">{value}</div>
      <Text size="xs" c="dimmed" className="num" mih={18}>
        {note}
      </Text>
    </Card>
  );
}

function Figures({ overview }: { overview: Overview | undefined }) {
  const { t } = useTranslation();
  const sum = (
    name:
      | "succeeded"
      | "failed"
      | "cancelled"
      | "expired"
      | "input_tokens"
      | "output_tokens"
      | "cost_microusd",
  ) => overview?.pulse.points.reduce((total, point) => total + point[name], 0) ?? 0;
  const ended = sum("succeeded") + sum("failed") + sum("cancelled") + sum("expired");
  // Over the last five minutes, or as long as there is anything to count.
  const now = overview ? new Date(overview.at).getTime() : 0;
  const from = overview ? Math.max(now - 300_000, new Date(overview.pulse.since).getTime()) : 0;
  const lately =
    overview?.pulse.points.filter((point) => point.at_ms >= from - (overview.pulse.step_ms ?? 0)) ?? [];
  const minutes = Math.max(1, (now - from) / 60_000);
  const rate = lately.reduce((total, point) => total + point.succeeded, 0) / minutes;
  const failed = sum("failed");
  const blank = <Skeleton height={34} width={72} />;
  const figures = [
    {
      label: t("overview.queued"),
      value: number(overview?.jobs.queued ?? 0),
      note: t("overview.scheduled", { count: overview?.jobs.scheduled ?? 0 }),
    },
    {
      label: t("overview.running"),
      value: number(overview?.jobs.running ?? 0),
      note: t("overview.inFlight", { count: overview?.jobs.dispatched ?? 0 }),
    },
    {
      label: t("overview.throughput"),
      value: number(rate < 10 ? Math.round(rate * 10) / 10 : Math.round(rate)),
      note: t("overview.lately"),
    },
    {
      label: t("overview.errors"),
      value: `${number(ended ? Math.round((failed / ended) * 1000) / 10 : 0)} %`,
      note: t("overview.ofEnded", { count: ended }),
    },
    {
      label: t("overview.tokens"),
      value: compact(sum("input_tokens") + sum("output_tokens")),
      note: t("overview.tokensText", {
        input: compact(sum("input_tokens")),
        output: compact(sum("output_tokens")),
      }),
    },
    { label: t("overview.cost"), value: money(sum("cost_microusd")), note: t("overview.lastHour") },
  ];
  return (
    <SimpleGrid cols={{ base: 2, sm: 3, xl: 6 }} spacing="sm">
      {figures.map((figure) => (
        <Figure key={figure.label} {...figure} value={overview ? figure.value : blank} />
      ))}
    </SimpleGrid>
  );
}

function Attention({ accounts }: { accounts: Account[] | undefined }) {
  const { t } = useTranslation();
  const now = useNow();
  const advice: Record<Exclude<Condition, "active">, (account: Account) => string> = {
    auth_failed: () => t("overview.authFailed"),
    out_of_credit: () => t("overview.outOfCredit"),
    paused: () => t("overview.paused"),
    draining: () => t("overview.draining"),
    no_worker: ({ id }) => t("overview.noWorker", { account: id }),
    cooling: ({ cooldown_until }) => t("overview.cooling", { time: ago(cooldown_until ?? "", now) }),
  };
  const found = (accounts ?? []).flatMap((account) => {
    const condition = conditionOf(account, now);
    return condition === "active" ? [] : [{ account, condition, text: advice[condition](account) }];
  });
  return (
    <Section title={t("overview.attention")}>
      {!accounts ? (
        <Rows count={3} />
      ) : found.length === 0 ? (
        <Empty
          icon={<IconCircleCheck size={28} stroke={1.4} />}
          title={t("overview.attentionEmpty")}
          text={t("overview.attentionEmptyText")}
        />
      ) : (
        <Stack
          gap="md"
          mah={260}
          style={{ overflowY: "auto" }}
          tabIndex={0}
          role="list"
          aria-label={t("overview.attention")}
        >
          {found.map(({ account, condition, text }) => (
            <Group key={account.id} justify="space-between" wrap="nowrap" align="flex-start" role="listitem">
              <div>
                <Group gap="xs">
                  <Text size="sm" fw={550}>
                    {account.id}
                  </Text>
                  <ConditionBadge condition={condition} />
                </Group>
                <Text size="xs" c="dimmed">
                  {text}
                </Text>
              </div>
              {condition !== "no_worker" && <SteerAccount account={account} condition={condition} compact />}
            </Group>
          ))}
        </Stack>
      )}
    </Section>
  );
}

/** A lane in words: what its jobs ask for. */
function LaneName({ lane }: { lane: string }) {
  const { t } = useTranslation();
  if (lane === "any") return <>{t("overview.anyLane")}</>;
  const parts = [...new URLSearchParams(lane)].map(([name, value]) => `${name} ${value}`);
  return <>{parts.join(" · ")}</>;
}

function Backlog({ overview }: { overview: Overview | undefined }) {
  const { t } = useTranslation();
  const color = (reason: string) =>
    reason === "turn" || reason === "slot"
      ? "light-dark(#3370e2, #6695f1)"
      : reason === "cooldown"
        ? "light-dark(#c27803, #e2a336)"
        : "light-dark(#d0342c, #f0645c)";
  return (
    <Section
      flush
      title={t("overview.backlog")}
      aside={
        <Link to="/jobs" search={{ state: ["queued"] }} className="text-link">
          <Text size="sm">{t("overview.seeWaiting")}</Text>
        </Link>
      }
    >
      {!overview ? (
        <Rows count={2} />
      ) : overview.backlog.length === 0 ? (
        <Empty
          icon={<IconInbox size={28} stroke={1.4} />}
          title={t("overview.backlogEmpty")}
          text={t("overview.backlogEmptyText")}
        />
      ) : (
        <Table.ScrollContainer minWidth={520} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
          <Table>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t("overview.lane")}</Table.Th>
                <Table.Th ta="right">{t("overview.jobs")}</Table.Th>
                <Table.Th>{t("overview.reason")}</Table.Th>
                <Table.Th>{t("overview.accounts")}</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {overview.backlog.slice(0, 20).map((lane) => (
                <Table.Tr key={lane.lane}>
                  <Table.Td fw={500}>
                    <LaneName lane={lane.lane} />
                  </Table.Td>
                  <Table.Td ta="right" className="num">
                    {number(lane.jobs)}
                  </Table.Td>
                  <Table.Td>
                    <Pill color={color(lane.waits_for)}>
                      {t(`waits.${lane.waits_for}`)}
                      {lane.until && `, ${t("overview.until", { time: clock(lane.until) })}`}
                    </Pill>
                  </Table.Td>
                  <Table.Td c="dimmed">{lane.accounts.join(", ")}</Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
    </Section>
  );
}

function AccountTile({ account }: { account: Account }) {
  const { t } = useTranslation();
  const now = useNow();
  const used = Math.min(100, (account.in_flight / Math.max(1, account.max_concurrency)) * 100);
  const condition = conditionOf(account, now);
  return (
    <Link to="/jobs" search={{ account: account.id }} className="tile">
      <Group justify="space-between" wrap="nowrap" mb={2}>
        <Text fw={600} size="sm" truncate>
          {account.id}
        </Text>
        <ConditionBadge condition={condition} />
      </Group>
      <Text size="xs" c="dimmed" mb="sm">
        {account.provider}
        {condition === "cooling" &&
          ` · ${t("overview.cooling", { time: ago(account.cooldown_until ?? "", now) })}`}
      </Text>
      <div className="bar">
        <div style={{ width: `${used}%` }} />
      </div>
      <Text size="xs" c="dimmed" mt={6} className="num">
        {t("accounts.slotsOf", { used: account.in_flight, all: account.max_concurrency })}
      </Text>
    </Link>
  );
}
