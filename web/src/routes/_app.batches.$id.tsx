import { Button, Grid, Group, Stack, Table, Text, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { createFileRoute, Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { useTranslation } from "react-i18next";
import { ApiError, type Batch } from "@/api/client";
import { batchQuery } from "@/api/queries";
import { BatchBadge, BatchBar, CancelBatch, countsOf, DownloadResults, Estimate } from "@/components/batch";
import { Copy, Details, Empty, Page, Pill, Rows, Section } from "@/components/parts";
import { TableCard } from "@/components/table-card";
import { dateTime, duration, number, useNow } from "@/lib/format";

export const Route = createFileRoute("/_app/batches/$id")({ component: BatchPage });

function BatchPage() {
  const { t } = useTranslation();
  const { id } = Route.useParams();
  const { data: batch, error } = useQuery(batchQuery(id));
  if (error instanceof ApiError && (error.status === 404 || error.status === 400)) {
    return (
      <Page title={t("batches.batch")}>
        <Empty
          title={t("batches.notFound")}
          text={t("batches.notFoundText")}
          action={
            <Button renderRoot={(props) => <Link to="/batches" search={{}} {...props} />}>
              {t("batches.all")}
            </Button>
          }
        />
      </Page>
    );
  }
  if (!batch) {
    return (
      <Page title={t("batches.batch")}>
        <Rows count={8} />
      </Page>
    );
  }
  return (
    <Page
      title={batch.name ?? t("batches.batch")}
      actions={
        <Group gap="xs">
          <Button
            variant="default"
            renderRoot={(props) => <Link to="/jobs" search={{ batch: batch.id }} {...props} />}
          >
            {t("batches.seeJobs")}
          </Button>
          <CancelBatch batch={batch} />
          <DownloadResults batch={batch} />
        </Group>
      }
    >
      <Group gap="md" mt={-12}>
        <BatchBadge state={batch.state} />
        <Group gap={2}>
          <Text span c="dimmed" className="mono" style={{ overflowWrap: "anywhere" }}>
            {batch.id}
          </Text>
          <Copy value={batch.id} label={`${t("batches.batch")}: ${t("common.copy")}`} />
        </Group>
      </Group>
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, md: 8 }}>
          <Progress batch={batch} />
        </Grid.Col>
        <Grid.Col span={{ base: 12, md: 4 }}>
          <About batch={batch} />
        </Grid.Col>
      </Grid>
      {batch.rejected > 0 && <Rejected batch={batch} />}
    </Page>
  );
}

function Progress({ batch }: { batch: Batch }) {
  const { t } = useTranslation();
  const { ended, parts } = countsOf(batch);
  return (
    <Section
      title={t("batches.progress")}
      aside={
        <Text size="sm" c="dimmed" className="num" component="div">
          {batch.state === "running" && (
            <>
              {t("batches.ends")} <Estimate at={batch.estimated_end_at} />
            </>
          )}
        </Text>
      }
    >
      <Stack gap="md">
        <Group gap="xs" align="baseline">
          <span className="figure" data-testid="ended">
            {number(ended)}
          </span>
          <Text c="dimmed" size="sm" className="num">
            / {number(batch.total)}
          </Text>
        </Group>
        <BatchBar batch={batch} tall />
        <ul className="legend">
          {parts.map(({ state, count, color }) => (
            <li key={state}>
              <Pill color={color}>{t(`state.${state}`)}</Pill>
              <div className="num">
                {count > 0 ? (
                  <Link
                    to="/jobs"
                    search={{ batch: batch.id, state: [state] }}
                    className="text-link"
                    aria-label={`${t(`state.${state}`)} ${number(count)}`}
                  >
                    {number(count)}
                  </Link>
                ) : (
                  <Text span c="dimmed" inherit>
                    0
                  </Text>
                )}
              </div>
            </li>
          ))}
        </ul>
        {batch.state !== "ended" && (
          <Text size="xs" c="dimmed">
            {t("batches.soFar")}
          </Text>
        )}
      </Stack>
    </Section>
  );
}

function About({ batch }: { batch: Batch }) {
  const { t } = useTranslation();
  const now = useNow();
  const from = new Date(batch.created_at).getTime();
  const rows: [string, ReactNode][] = [
    [t("jobs.client"), batch.client],
    [t("batches.jobs"), number(batch.total)],
    [t("batches.rejected"), batch.rejected > 0 && number(batch.rejected)],
    [t("batches.created"), dateTime(batch.created_at)],
    [t("batches.ended"), batch.ended_at && dateTime(batch.ended_at)],
    [t("batches.took"), duration((batch.ended_at ? new Date(batch.ended_at).getTime() : now) - from)],
  ];
  return (
    <Section title={t("batches.details")}>
      <Details rows={rows} />
    </Section>
  );
}

/** The lines of the upload that are no jobs, the first of them. */
function Rejected({ batch }: { batch: Batch }) {
  const { t } = useTranslation();
  const errors = batch.errors ?? [];
  const title = t("batches.rejectedTitle", { count: batch.rejected });
  return (
    <Stack gap="xs" component="section">
      <Group justify="space-between">
        <Title order={2}>{title}</Title>
        {errors.length < batch.rejected && (
          <Text size="sm" c="dimmed">
            {t("batches.rejectedFirst", { count: errors.length })}
          </Text>
        )}
      </Group>
      <TableCard label={title} minWidth={480}>
        <Table>
          <Table.Thead>
            <Table.Tr>
              <Table.Th w={90} ta="right">
                {t("batches.line")}
              </Table.Th>
              <Table.Th w={180}>{t("batches.code")}</Table.Th>
              <Table.Th>{t("batches.why")}</Table.Th>
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {errors.map((error) => (
              <Table.Tr key={error.line}>
                <Table.Td ta="right" className="num">
                  {number(error.line)}
                </Table.Td>
                <Table.Td className="mono">{error.code}</Table.Td>
                <Table.Td style={{ overflowWrap: "anywhere" }}>{error.detail}</Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </TableCard>
    </Stack>
  );
}
