import { Badge, Button, Group, Stack, Table, Text, Title, VisuallyHidden } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { IconPlus, IconWebhook } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { createFileRoute, Link, useNavigate } from "@tanstack/react-router";
import { useTranslation } from "react-i18next";
import type { EventKind } from "@/api/client";
import { webhooksQuery } from "@/api/queries";
import { Deliveries, deliverySearch } from "@/components/deliveries";
import { Empty, Page, Rows } from "@/components/parts";
import { TableCard } from "@/components/table-card";
import {
  kindText,
  LastDeliveries,
  RotateSecret,
  WebhookActions,
  WebhookForm,
  WebhookState,
} from "@/components/webhooks";
import { useSession } from "@/lib/session";

export const Route = createFileRoute("/_app/webhooks/")({
  validateSearch: deliverySearch,
  component: Webhooks,
});

function Webhooks() {
  const { t } = useTranslation();
  const { may } = useSession();
  const filter = Route.useSearch();
  const navigate = useNavigate({ from: Route.fullPath });
  const [makes, { open, close }] = useDisclosure();
  const [rotates, own] = useDisclosure();
  return (
    <Page
      title={t("webhooks.title")}
      actions={
        <Group gap="xs">
          {may("submit") && (
            <Button variant="default" onClick={own.open}>
              {t("webhooks.own")}
            </Button>
          )}
          {may("operate") && (
            <Button leftSection={<IconPlus size={16} aria-hidden />} onClick={open}>
              {t("webhooks.create")}
            </Button>
          )}
        </Group>
      }
    >
      <Endpoints />
      <Stack gap="sm" component="section">
        <Title order={2}>{t("webhooks.deliveries")}</Title>
        <Deliveries filter={filter} onFilter={(search) => navigate({ search, replace: true })} />
      </Stack>
      {makes && <WebhookForm onDone={close} />}
      {rotates && <RotateSecret onDone={own.close} />}
    </Page>
  );
}

function Endpoints() {
  const { t } = useTranslation();
  const { data: webhooks, error } = useQuery(webhooksQuery);
  return (
    <TableCard label={t("webhooks.endpoints")} minWidth={980}>
      {error && !webhooks ? (
        <Empty title={t("common.error")} text={error.message} />
      ) : !webhooks ? (
        <Rows count={3} />
      ) : webhooks.length === 0 ? (
        <Empty
          icon={<IconWebhook size={28} stroke={1.4} />}
          title={t("webhooks.empty")}
          text={t("webhooks.emptyText")}
        />
      ) : (
        <Table>
          <Table.Thead>
            <Table.Tr>
              <Table.Th w={270}>{t("webhooks.endpoint")}</Table.Th>
              <Table.Th>{t("webhooks.state")}</Table.Th>
              <Table.Th>{t("webhooks.events")}</Table.Th>
              <Table.Th>{t("webhooks.client")}</Table.Th>
              <Table.Th>{t("webhooks.last")}</Table.Th>
              <Table.Th>
                <VisuallyHidden>{t("common.actions")}</VisuallyHidden>
              </Table.Th>
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {webhooks.map((webhook) => (
              <Table.Tr key={webhook.id}>
                <Table.Td maw={320}>
                  <Link
                    to="/webhooks/$id"
                    params={{ id: webhook.id }}
                    className="row-link"
                    style={{ overflowWrap: "anywhere" }}
                  >
                    {webhook.url}
                  </Link>
                  {webhook.description && (
                    <Text size="xs" c="dimmed" lineClamp={2}>
                      {webhook.description}
                    </Text>
                  )}
                </Table.Td>
                <Table.Td maw={220}>
                  <WebhookState webhook={webhook} />
                </Table.Td>
                <Table.Td>
                  <Events events={webhook.events} />
                </Table.Td>
                <Table.Td c={webhook.client ? undefined : "dimmed"}>
                  {webhook.client ?? t("webhooks.anyClient")}
                </Table.Td>
                <Table.Td>
                  <LastDeliveries webhook={webhook} />
                </Table.Td>
                <Table.Td ta="right">
                  <WebhookActions webhook={webhook} />
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      )}
    </TableCard>
  );
}

function Events({ events }: { events: EventKind[] }) {
  const { t } = useTranslation();
  if (events.length === 0) {
    return (
      <Text span c="dimmed" inherit>
        {t("webhooks.allEvents")}
      </Text>
    );
  }
  return (
    <Group gap={4}>
      {events.map((kind) => (
        <Badge key={kind} variant="default" fw={450}>
          {t(kindText(kind))}
        </Badge>
      ))}
    </Group>
  );
}
