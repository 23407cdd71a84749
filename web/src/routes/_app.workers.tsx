import { Badge, Group, Table } from "@mantine/core";
import { IconServer } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { createFileRoute } from "@tanstack/react-router";
import { useTranslation } from "react-i18next";
import { workersQuery } from "@/api/queries";
import { Empty, Page, Rows } from "@/components/parts";
import { TableCard } from "@/components/table-card";
import { ago, dateTime, duration, useNow } from "@/lib/format";

export const Route = createFileRoute("/_app/workers")({ component: Workers });

function Workers() {
  const { t } = useTranslation();
  const { data: workers } = useQuery(workersQuery);
  const now = useNow();
  return (
    <Page title={t("workers.title")}>
      <TableCard label={t("workers.title")} minWidth={760}>
        {!workers ? (
          <Rows />
        ) : workers.length === 0 ? (
          <Empty
            icon={<IconServer size={28} stroke={1.4} />}
            title={t("workers.empty")}
            text={t("workers.emptyText")}
          />
        ) : (
          <Table>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t("workers.worker")}</Table.Th>
                <Table.Th>{t("workers.host")}</Table.Th>
                <Table.Th ta="right">{t("workers.pid")}</Table.Th>
                <Table.Th>{t("workers.version")}</Table.Th>
                <Table.Th>{t("workers.accounts")}</Table.Th>
                <Table.Th ta="right">{t("workers.inFlight")}</Table.Th>
                <Table.Th ta="right">{t("workers.since")}</Table.Th>
                <Table.Th ta="right">{t("workers.heard")}</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {workers.map((worker) => (
                <Table.Tr key={worker.id}>
                  <Table.Td fw={500}>{worker.id}</Table.Td>
                  <Table.Td>{worker.host}</Table.Td>
                  <Table.Td ta="right" className="num">
                    {worker.pid}
                  </Table.Td>
                  <Table.Td>{worker.version}</Table.Td>
                  <Table.Td>
                    <Group gap={4}>
                      {worker.accounts.map((account) => (
                        <Badge key={account} variant="default" fw={450}>
                          {account}
                        </Badge>
                      ))}
                    </Group>
                  </Table.Td>
                  <Table.Td ta="right" className="num">
                    {worker.in_flight}
                  </Table.Td>
                  <Table.Td ta="right" className="num" title={dateTime(worker.since)}>
                    {duration(now - new Date(worker.since).getTime())}
                  </Table.Td>
                  <Table.Td ta="right" className="num" c="dimmed">
                    {ago(worker.last_heartbeat, now)}
                  </Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        )}
      </TableCard>
    </Page>
  );
}
