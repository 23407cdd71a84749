import { Button, Grid, Group, Stack, Text } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { createFileRoute, Link } from "@tanstack/react-router";
import type { CSSProperties } from "react";
import { useTranslation } from "react-i18next";
import { ApiError, api, type DeliveryDetail, data } from "@/api/client";
import { deliveryQuery, jobQuery, queryKeys, webhookQuery } from "@/api/queries";
import { Code, Details, Empty, green, Page, Rows, red, Section } from "@/components/parts";
import { DeliveryBadge, kindText } from "@/components/webhooks";
import { ago, dateTime, duration, useNow } from "@/lib/format";
import { sayDone, sayError, useSession } from "@/lib/session";

export const Route = createFileRoute("/_app/webhooks/deliveries/$id")({ component: DeliveryPage });

function DeliveryPage() {
  const { t } = useTranslation();
  const { id } = Route.useParams();
  const { data: delivery, error } = useQuery(deliveryQuery(id));
  if (error instanceof ApiError && (error.status === 404 || error.status === 400)) {
    return (
      <Page title={t("webhooks.delivery")}>
        <Empty
          title={t("webhooks.notFoundDelivery")}
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
  if (!delivery) {
    return (
      <Page title={t("webhooks.delivery")}>
        <Rows count={8} />
      </Page>
    );
  }
  return (
    <Page title={t("webhooks.delivery")} actions={<Replay delivery={delivery} />}>
      <Group gap="md" mt={-12}>
        <DeliveryBadge state={delivery.state} />
        <Text c="dimmed" size="sm">
          {t(kindText(delivery.type))}
        </Text>
      </Group>
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, md: 8 }}>
          <Stack gap="lg">
            <Attempts delivery={delivery} />
            <Section title={t("webhooks.request")}>
              <Code text={JSON.stringify(delivery.request, null, 2)} label={t("webhooks.request")} />
            </Section>
          </Stack>
        </Grid.Col>
        <Grid.Col span={{ base: 12, md: 4 }}>
          <About delivery={delivery} />
        </Grid.Col>
      </Grid>
    </Page>
  );
}

function Attempts({ delivery }: { delivery: DeliveryDetail }) {
  const { t } = useTranslation();
  const now = useNow();
  const waits = delivery.state === "pending" && delivery.next_try_at;
  return (
    <Section
      title={t("webhooks.attempts")}
      aside={
        waits ? (
          <Text size="sm" c="dimmed">
            {t("webhooks.nextTry", { time: ago(waits, now) })}
          </Text>
        ) : undefined
      }
    >
      {delivery.attempts.length === 0 ? (
        <Text size="sm" c="dimmed">
          {t("webhooks.noAttempts")}
        </Text>
      ) : (
        <ol className="steps">
          {delivery.attempts.map((attempt) => (
            <li
              key={`${attempt.number} ${attempt.at}`}
              style={{ "--dot": attempt.error ? red : green } as CSSProperties}
            >
              <Group justify="space-between" gap="xs">
                <Text size="sm" fw={550}>
                  {t("webhooks.attempt", { number: attempt.number })} ·{" "}
                  {attempt.status ? `HTTP ${attempt.status}` : t("webhooks.noAnswer")}
                </Text>
                <Text size="xs" c="dimmed" className="num">
                  {dateTime(attempt.at)} · {duration(attempt.millis)}
                </Text>
              </Group>
              {attempt.error && (
                <Text size="xs" style={{ overflowWrap: "anywhere" }}>
                  {attempt.error}
                </Text>
              )}
              {attempt.response && (
                <div style={{ marginTop: 8 }}>
                  <Code text={attempt.response} label={`${t("webhooks.response")} ${attempt.number}`} />
                </div>
              )}
            </li>
          ))}
        </ol>
      )}
    </Section>
  );
}

function About({ delivery }: { delivery: DeliveryDetail }) {
  const { t } = useTranslation();
  return (
    <Section title={t("job.details")}>
      <Details
        rows={[
          [
            t("webhooks.to"),
            delivery.webhook ? (
              <Link key="to" to="/webhooks/$id" params={{ id: delivery.webhook }} className="text-link">
                {delivery.url}
              </Link>
            ) : (
              `${delivery.url} (${t("webhooks.ownUrl")})`
            ),
          ],
          [
            t("webhooks.ofJob"),
            delivery.job && (
              <Link key="job" to="/jobs/$id" params={{ id: delivery.job }} className="text-link mono">
                {delivery.job.slice(0, 8)}…{delivery.job.slice(-6)}
              </Link>
            ),
          ],
          [
            "webhook-id",
            <span key="id" className="mono">
              {delivery.event}
            </span>,
          ],
          [t("webhooks.tries"), String(delivery.tries)],
          [t("webhooks.happened"), dateTime(delivery.event_at)],
          [
            t(delivery.state === "delivered" ? "webhooks.arrived" : "webhooks.gaveUp"),
            delivery.ended_at && dateTime(delivery.ended_at),
          ],
        ]}
      />
    </Section>
  );
}

/** Sends it anew: an operator any, others what their own jobs named. */
function Replay({ delivery }: { delivery: DeliveryDetail }) {
  const { t } = useTranslation();
  const { may, client } = useSession();
  const queries = useQueryClient();
  const { data: webhook } = useQuery({
    ...webhookQuery(delivery.webhook ?? ""),
    enabled: Boolean(delivery.webhook),
  });
  const { data: job } = useQuery({
    ...jobQuery(delivery.job ?? ""),
    enabled: Boolean(delivery.job) && !delivery.webhook && !may("operate"),
  });
  const replay = useMutation({
    mutationFn: () =>
      data(api.POST("/api/deliveries/{id}/replay", { params: { path: { id: delivery.id } } })),
    onSuccess: () => sayDone(t("webhooks.replayed", { count: 1 })),
    onError: sayError,
    onSettled: () => queries.invalidateQueries({ queryKey: queryKeys.deliveries }),
  });
  const mine = may("operate") || (may("submit") && !delivery.webhook && job?.client === client);
  if (!mine) return null;
  const disabled = webhook?.enabled === false;
  return (
    <Button
      variant="default"
      loading={replay.isPending}
      disabled={disabled}
      title={disabled ? t("webhooks.disabledHint") : undefined}
      onClick={() => replay.mutate()}
    >
      {t("webhooks.replay")}
    </Button>
  );
}
