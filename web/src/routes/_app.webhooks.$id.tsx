import { Button, Group, Stack, Text, Title } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { createFileRoute, Link, useNavigate } from "@tanstack/react-router";
import { useTranslation } from "react-i18next";
import { ApiError } from "@/api/client";
import { webhookQuery } from "@/api/queries";
import { Deliveries, deliverySearch, ReplaySince } from "@/components/deliveries";
import { Details, Empty, Page, Rows, Section } from "@/components/parts";
import { kindText, WebhookActions, WebhookState } from "@/components/webhooks";
import { dateTime } from "@/lib/format";
import { useSession } from "@/lib/session";

export const Route = createFileRoute("/_app/webhooks/$id")({
  validateSearch: deliverySearch,
  component: WebhookPage,
});

function WebhookPage() {
  const { t } = useTranslation();
  const { id } = Route.useParams();
  const filter = Route.useSearch();
  const navigate = useNavigate({ from: Route.fullPath });
  const { may } = useSession();
  const { data: webhook, error } = useQuery(webhookQuery(id));
  if (error instanceof ApiError && (error.status === 404 || error.status === 400)) {
    return (
      <Page title={t("webhooks.endpoint")}>
        <Empty
          title={t("webhooks.notFound")}
          text={t("webhooks.notFoundText")}
          action={
            <Button renderRoot={(props) => <Link to="/webhooks" search={{}} {...props} />}>
              {t("webhooks.all")}
            </Button>
          }
        />
      </Page>
    );
  }
  if (!webhook) {
    return (
      <Page title={t("webhooks.endpoint")}>
        <Rows count={8} />
      </Page>
    );
  }
  const events = webhook.events.map((kind) => t(kindText(kind))).join(", ");
  return (
    <Page
      title={t("webhooks.endpoint")}
      actions={
        <WebhookActions webhook={webhook} onRemoved={() => navigate({ to: "/webhooks", search: {} })} />
      }
    >
      <Section title={webhook.url}>
        <Stack gap="sm">
          <WebhookState webhook={webhook} />
          {webhook.description && (
            <Text size="sm" style={{ whiteSpace: "pre-wrap" }}>
              {webhook.description}
            </Text>
          )}
          <Details
            rows={[
              [t("webhooks.events"), events || t("webhooks.allEvents")],
              [t("webhooks.client"), webhook.client ?? t("webhooks.anyClient")],
              [t("keys.created"), dateTime(webhook.created_at)],
            ]}
          />
        </Stack>
      </Section>
      <Stack gap="sm" component="section">
        <Group justify="space-between">
          <Title order={2}>{t("webhooks.deliveries")}</Title>
          {may("operate") && <ReplaySince webhook={webhook} />}
        </Group>
        <Deliveries
          filter={filter}
          webhook={webhook}
          onFilter={(search) => navigate({ search, replace: true })}
        />
      </Stack>
    </Page>
  );
}
