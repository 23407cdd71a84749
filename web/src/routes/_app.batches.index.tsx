import { Button, Group, Table, Text, TextInput, VisuallyHidden } from "@mantine/core";
import { useDebouncedCallback } from "@mantine/hooks";
import { IconStack2 } from "@tabler/icons-react";
import { useInfiniteQuery } from "@tanstack/react-query";
import { createFileRoute, Link, useNavigate } from "@tanstack/react-router";
import { useTranslation } from "react-i18next";
import * as v from "valibot";
import type { Batch } from "@/api/client";
import { batchesQuery } from "@/api/queries";
import {
  BatchBadge,
  BatchBar,
  CancelBatch,
  countsOf,
  nameOf,
  RowEstimate,
  UploadBatch,
} from "@/components/batch";
import { Empty, Page, Rows } from "@/components/parts";
import { TableCard } from "@/components/table-card";
import { ago, dateTime, duration, number, useNow } from "@/lib/format";

export const Route = createFileRoute("/_app/batches/")({
  validateSearch: v.object({ client: v.optional(v.fallback(v.optional(v.string()), undefined)) }),
  component: Batches,
});

function Batches() {
  const { t } = useTranslation();
  const { client } = Route.useSearch();
  const {
    data: pages,
    hasNextPage,
    fetchNextPage,
    isFetchingNextPage,
    error,
  } = useInfiniteQuery(batchesQuery(client));
  const batches = pages?.pages.flatMap((page) => page.batches) ?? [];
  const navigate = useNavigate({ from: Route.fullPath });
  const filter = useDebouncedCallback(
    (client: string) => navigate({ search: client ? { client } : {}, replace: true }),
    250,
  );
  return (
    <Page title={t("batches.title")} actions={<UploadBatch />}>
      {(client || batches.length > 0) && (
        <Group gap="xs" component="search" aria-label={t("common.filters")}>
          <TextInput
            key={String(Boolean(client))}
            aria-label={t("jobs.client")}
            placeholder={t("jobs.client")}
            defaultValue={client}
            onChange={(event) => filter(event.currentTarget.value)}
            w={{ base: "100%", xs: 200 }}
          />
        </Group>
      )}
      <TableCard label={t("batches.title")} minWidth={860}>
        {error ? (
          <Empty title={t("common.error")} text={error.message} />
        ) : !pages ? (
          <Rows count={10} />
        ) : batches.length === 0 ? (
          <Empty
            icon={<IconStack2 size={28} stroke={1.4} />}
            title={t(client ? "batches.emptyFiltered" : "batches.empty")}
            text={t(client ? "jobs.emptyFilteredText" : "batches.emptyText")}
            action={
              client ? (
                <Button
                  variant="default"
                  renderRoot={(props) => <Link to="/batches" search={{}} {...props} />}
                >
                  {t("common.clear")}
                </Button>
              ) : undefined
            }
          />
        ) : (
          <Table highlightOnHover>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t("batches.batch")}</Table.Th>
                <Table.Th>{t("batches.state")}</Table.Th>
                <Table.Th w={240}>{t("batches.progress")}</Table.Th>
                <Table.Th>{t("jobs.client")}</Table.Th>
                <Table.Th ta="right">{t("batches.ends")}</Table.Th>
                <Table.Th ta="right">{t("batches.created")}</Table.Th>
                <Table.Th>
                  <VisuallyHidden>{t("common.actions")}</VisuallyHidden>
                </Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {batches.map((batch) => (
                <Row key={batch.id} batch={batch} />
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

function Row({ batch }: { batch: Batch }) {
  const { t } = useTranslation();
  const now = useNow();
  const { ended, parts } = countsOf(batch);
  const failed = parts.find(({ state }) => state === "failed")?.count ?? 0;
  const took = batch.ended_at
    ? new Date(batch.ended_at).getTime() - new Date(batch.created_at).getTime()
    : undefined;
  return (
    <Table.Tr>
      <Table.Td maw={260}>
        <Link
          to="/batches/$id"
          params={{ id: batch.id }}
          className={batch.name ? "row-link" : "row-link mono"}
          style={{ overflowWrap: "anywhere" }}
        >
          {nameOf(batch)}
        </Link>
      </Table.Td>
      <Table.Td>
        <BatchBadge state={batch.state} />
      </Table.Td>
      <Table.Td>
        <BatchBar batch={batch} />
        <Text size="xs" c="dimmed" className="num" mt={4}>
          {t("batches.done", { count: ended, total: number(batch.total) })}
          {failed > 0 && ` · ${t("state.failed")} ${number(failed)}`}
        </Text>
      </Table.Td>
      <Table.Td>{batch.client}</Table.Td>
      <Table.Td ta="right" className="num" title={batch.ended_at ? dateTime(batch.ended_at) : undefined}>
        {took === undefined ? <RowEstimate batch={batch} /> : `${t("batches.took")} ${duration(took)}`}
      </Table.Td>
      <Table.Td ta="right" className="num" c="dimmed" title={dateTime(batch.created_at)}>
        {ago(batch.created_at, now)}
      </Table.Td>
      <Table.Td ta="right">
        <CancelBatch batch={batch} compact />
      </Table.Td>
    </Table.Tr>
  );
}
