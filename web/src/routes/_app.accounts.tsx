import { Badge, Group, Table, Text, VisuallyHidden } from "@mantine/core";
import { IconUsers } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { createFileRoute, Link } from "@tanstack/react-router";
import { useTranslation } from "react-i18next";
import { accountsQuery } from "@/api/queries";
import { SteerAccount } from "@/components/accounts";
import { ConditionBadge, conditionOf, Empty, Page, Rows } from "@/components/parts";
import { TableCard } from "@/components/table-card";
import { ago, useNow } from "@/lib/format";

export const Route = createFileRoute("/_app/accounts")({ component: Accounts });

function Accounts() {
  const { t } = useTranslation();
  const { data: accounts } = useQuery(accountsQuery);
  const now = useNow();
  return (
    <Page title={t("accounts.title")}>
      <TableCard label={t("accounts.title")} minWidth={860}>
        {!accounts ? (
          <Rows />
        ) : accounts.length === 0 ? (
          <Empty
            icon={<IconUsers size={28} stroke={1.4} />}
            title={t("accounts.empty")}
            text={t("accounts.emptyText")}
          />
        ) : (
          <Table>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t("accounts.account")}</Table.Th>
                <Table.Th>{t("accounts.state")}</Table.Th>
                <Table.Th w={170}>{t("accounts.slots")}</Table.Th>
                <Table.Th ta="right">{t("accounts.workers")}</Table.Th>
                <Table.Th>{t("accounts.models")}</Table.Th>
                <Table.Th>{t("accounts.tags")}</Table.Th>
                <Table.Th ta="right">{t("accounts.weight")}</Table.Th>
                <Table.Th>
                  <VisuallyHidden>{t("common.actions")}</VisuallyHidden>
                </Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {accounts.map((account) => {
                const condition = conditionOf(account, now);
                const used = (account.in_flight / Math.max(1, account.max_concurrency)) * 100;
                return (
                  <Table.Tr key={account.id}>
                    <Table.Td>
                      <Link to="/jobs" search={{ account: account.id }} className="row-link">
                        {account.id}
                      </Link>
                      <Text size="xs" c="dimmed">
                        {account.provider}
                      </Text>
                    </Table.Td>
                    <Table.Td>
                      <ConditionBadge condition={condition} />
                      <Text size="xs" c="dimmed">
                        {condition === "cooling" && `${ago(account.cooldown_until ?? "", now)} · `}
                        {account.reason}
                      </Text>
                    </Table.Td>
                    <Table.Td>
                      <Group gap="xs" wrap="nowrap">
                        <div className="bar" style={{ flex: 1 }}>
                          <div style={{ width: `${Math.min(100, used)}%` }} />
                        </div>
                        <Text size="xs" c="dimmed" className="num">
                          {account.in_flight}/{account.max_concurrency}
                        </Text>
                      </Group>
                    </Table.Td>
                    <Table.Td ta="right" className="num">
                      {account.workers ?? "?"}
                    </Table.Td>
                    <Table.Td c={account.models.length ? undefined : "dimmed"}>
                      {account.models.join(", ") || t("accounts.anyModel")}
                    </Table.Td>
                    <Table.Td>
                      <Group gap={4}>
                        {account.tags.map((tag) => (
                          <Badge key={tag} variant="default" fw={450}>
                            {tag}
                          </Badge>
                        ))}
                      </Group>
                    </Table.Td>
                    <Table.Td ta="right" className="num">
                      {account.weight}
                    </Table.Td>
                    <Table.Td ta="right">
                      <SteerAccount account={account} condition={condition} />
                    </Table.Td>
                  </Table.Tr>
                );
              })}
            </Table.Tbody>
          </Table>
        )}
      </TableCard>
    </Page>
  );
}
