import {
  ActionIcon,
  Alert,
  Button,
  Checkbox,
  Group,
  Menu,
  Modal,
  Select,
  Stack,
  Text,
  Textarea,
  TextInput,
} from "@mantine/core";
import { IconDots } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { type CSSProperties, type FormEvent, type ReactNode, useState } from "react";
import { useTranslation } from "react-i18next";
import { api, type DeliveryState, data, type EventKind, type Webhook } from "@/api/client";
import { lastDeliveriesQuery, queryKeys } from "@/api/queries";
import { amber, blue, Code, Confirm, green, grey, Pill, red } from "@/components/parts";
import { ago, dateTime, useNow } from "@/lib/format";
import { sayDone, sayError, useSession } from "@/lib/session";

/** The kinds of events that an endpoint may ask for. A test comes to any. */
export const kinds = [
  "job.succeeded",
  "job.failed",
  "job.cancelled",
  "job.expired",
  "batch.ended",
  "webhook.disabled",
] as const satisfies EventKind[];

/** The words for a kind of event: a dot would part the name of a text. */
export const kindText = (kind: EventKind) =>
  `webhooks.kind.${kind.replace(".", "_") as "job_succeeded"}` as const;

export const deliveryColors: Record<DeliveryState, string> = {
  pending: blue,
  held: amber,
  delivered: green,
  failed: red,
};

export function DeliveryBadge({ state }: { state: DeliveryState }) {
  const { t } = useTranslation();
  return <Pill color={deliveryColors[state]}>{t(`webhooks.is.${state}`)}</Pill>;
}

/** Whether an endpoint gets anything, and if not, why. */
export function WebhookState({ webhook }: { webhook: Webhook }) {
  const { t } = useTranslation();
  return (
    <div>
      {!webhook.enabled ? (
        <Pill color={grey}>{t("webhooks.disabled")}</Pill>
      ) : webhook.failing_since ? (
        <>
          <Pill color={red}>{t("webhooks.failing")}</Pill>
          <Text size="xs" c="dimmed" className="num">
            {t("webhooks.failingSince", { time: dateTime(webhook.failing_since) })}
          </Text>
        </>
      ) : (
        <Pill color={green}>{t("webhooks.enabled")}</Pill>
      )}
      {!webhook.enabled && webhook.disabled_reason && (
        <Text size="xs" c="dimmed" style={{ overflowWrap: "anywhere" }}>
          {webhook.disabled_reason}
        </Text>
      )}
      {webhook.previous_secret_until && (
        <Text size="xs" c="dimmed">
          {t("webhooks.rotating", { time: dateTime(webhook.previous_secret_until) })}
        </Text>
      )}
    </div>
  );
}

/** How the newest deliveries of an endpoint went, the newest last. */
export function LastDeliveries({ webhook }: { webhook: Webhook }) {
  const { t } = useTranslation();
  const now = useNow();
  const { data: last } = useQuery(lastDeliveriesQuery(webhook.id));
  const [newest] = last ?? [];
  if (!newest) {
    return (
      <Text span c="dimmed" inherit>
        {last ? t("webhooks.lastNone") : "…"}
      </Text>
    );
  }
  return (
    <Group gap="xs" wrap="nowrap">
      <span className="dots" aria-hidden>
        {last?.toReversed().map(({ id, state }) => (
          <span key={id} className="dot" style={{ "--dot": deliveryColors[state] } as CSSProperties} />
        ))}
      </span>
      <Link to="/webhooks/deliveries/$id" params={{ id: newest.id }} className="row-link">
        {t(`webhooks.is.${newest.state}`)}
      </Link>
      <Text span c="dimmed" inherit className="num" style={{ whiteSpace: "nowrap" }}>
        {ago(newest.event_at, now)}
      </Text>
    </Group>
  );
}

/** What was made and is shown this once. */
function Secret({
  secret,
  previousUntil,
  onDone,
}: {
  secret: string;
  previousUntil?: string | null | undefined;
  onDone: () => void;
}) {
  const { t } = useTranslation();
  return (
    <Stack>
      <Text fw={550} size="sm">
        {t("webhooks.secretTitle")}
      </Text>
      <Text size="sm" c="dimmed">
        {t("webhooks.secretText")}{" "}
        {previousUntil && t("webhooks.secretPrevious", { time: dateTime(previousUntil) })}
      </Text>
      <Code text={secret} label={t("webhooks.secret")} />
      <Group justify="flex-end">
        <Button onClick={onDone}>{t("webhooks.kept")}</Button>
      </Group>
    </Stack>
  );
}

function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ReactNode }) {
  const { t } = useTranslation();
  return (
    <Modal
      opened
      onClose={onClose}
      title={<Text fw={600}>{title}</Text>}
      closeButtonProps={{ "aria-label": t("common.close") }}
    >
      {children}
    </Modal>
  );
}

function useRefresh() {
  const queries = useQueryClient();
  return () => {
    queries.invalidateQueries({ queryKey: queryKeys.webhooks });
    queries.invalidateQueries({ queryKey: queryKeys.deliveries });
  };
}

/** A change that changes nothing. */
const asItIs = { url: null, events: null, description: null, enabled: null };

/** Makes an endpoint, or changes one. A new one's secret is shown at the end. */
export function WebhookForm({ webhook, onDone }: { webhook?: Webhook; onDone: () => void }) {
  const { t } = useTranslation();
  const refresh = useRefresh();
  const [url, setUrl] = useState(webhook?.url ?? "");
  const [events, setEvents] = useState<string[]>(webhook?.events ?? []);
  const [client, setClient] = useState("");
  const [description, setDescription] = useState(webhook?.description ?? "");
  const save = useMutation({
    mutationFn: async () => {
      const body = { url: url.trim(), events: events as EventKind[], description: description.trim() };
      if (!webhook) {
        const only = client.trim() ? { client: client.trim() } : {};
        return data(api.POST("/api/webhooks", { body: { ...body, ...only } }));
      }
      await data(
        api.PATCH("/api/webhooks/{id}", {
          params: { path: { id: webhook.id } },
          body: { ...asItIs, ...body },
        }),
      );
      return undefined;
    },
    onSuccess: (made) => {
      refresh();
      if (made) return;
      sayDone(t("webhooks.saved"));
      onDone();
    },
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    save.mutate();
  };
  const title = t(webhook ? "webhooks.edit" : "webhooks.create");
  return (
    <Dialog title={title} onClose={onDone}>
      {save.data ? (
        <Secret secret={save.data.secret} onDone={onDone} />
      ) : (
        <form onSubmit={submit}>
          <Stack>
            <TextInput
              type="url"
              label={t("webhooks.url")}
              description={t("webhooks.urlHint")}
              placeholder="https://example.com/hook"
              value={url}
              onChange={(event) => setUrl(event.currentTarget.value)}
              data-autofocus
              required
            />
            <Checkbox.Group
              label={t("webhooks.events")}
              description={t("webhooks.eventsHint")}
              value={events}
              onChange={setEvents}
            >
              <Stack gap="xs" mt="xs">
                {kinds.map((kind) => (
                  <Checkbox key={kind} value={kind} label={t(kindText(kind))} />
                ))}
              </Stack>
            </Checkbox.Group>
            {!webhook && (
              <TextInput
                label={t("webhooks.client")}
                description={t("webhooks.clientHint")}
                value={client}
                maxLength={64}
                onChange={(event) => setClient(event.currentTarget.value)}
              />
            )}
            <Textarea
              label={t("webhooks.description")}
              value={description}
              maxLength={500}
              autosize
              onChange={(event) => setDescription(event.currentTarget.value)}
            />
            {save.error && (
              <Alert color="red" role="alert">
                <Text size="sm">{save.error.message}</Text>
              </Alert>
            )}
            <Group justify="flex-end">
              <Button variant="default" onClick={onDone}>
                {t("common.cancel")}
              </Button>
              <Button type="submit" loading={save.isPending} disabled={!url.trim()}>
                {t(webhook ? "webhooks.save" : "webhooks.makeIt")}
              </Button>
            </Group>
          </Stack>
        </form>
      )}
    </Dialog>
  );
}

const spans = ["0s", "1h", "24h", "7d", "30d"] as const;

/** Replaces an endpoint's secret, or without one that of the webhooks that one's own jobs name. */
export function RotateSecret({ webhook, onDone }: { webhook?: Webhook; onDone: () => void }) {
  const { t } = useTranslation();
  const { client } = useSession();
  const refresh = useRefresh();
  const [keep, setKeep] = useState<string>("24h");
  const rotate = useMutation({
    mutationFn: () => {
      const body = { keep_previous: keep };
      return webhook
        ? data(api.POST("/api/webhooks/{id}/rotate", { params: { path: { id: webhook.id } }, body }))
        : data(api.POST("/api/webhook-secret", { body }));
    },
    onSuccess: refresh,
  });
  return (
    <Dialog title={t(webhook ? "webhooks.rotateTitle" : "webhooks.own")} onClose={onDone}>
      {rotate.data ? (
        <Secret
          secret={rotate.data.secret}
          previousUntil={rotate.data.previous_secret_until}
          onDone={onDone}
        />
      ) : (
        <Stack>
          <Text size="sm" c="dimmed">
            {webhook ? t("webhooks.rotateText") : t("webhooks.ownText", { client })}
          </Text>
          <Select
            label={t("webhooks.rotateKeep")}
            data={spans.map((value) => ({ value, label: t(`webhooks.keep.${value}`) }))}
            value={keep}
            onChange={(value) => value && setKeep(value)}
            allowDeselect={false}
          />
          {rotate.error && (
            <Alert color="red" role="alert">
              <Text size="sm">{rotate.error.message}</Text>
            </Alert>
          )}
          <Group justify="flex-end">
            <Button variant="default" onClick={onDone} data-autofocus>
              {t("jobs.keep")}
            </Button>
            <Button loading={rotate.isPending} onClick={() => rotate.mutate()}>
              {t("webhooks.rotateConfirm")}
            </Button>
          </Group>
        </Stack>
      )}
    </Dialog>
  );
}

/** What can be done to an endpoint, for those who may. */
export function WebhookActions({ webhook, onRemoved }: { webhook: Webhook; onRemoved?: () => void }) {
  const { t } = useTranslation();
  const { may } = useSession();
  const refresh = useRefresh();
  const [asked, setAsked] = useState<"edit" | "rotate" | "disable" | "remove">();
  const close = () => setAsked(undefined);
  const path = { params: { path: { id: webhook.id } } };
  const test = useMutation({
    mutationFn: () => data(api.POST("/api/webhooks/{id}/test", path)),
    onSuccess: () => sayDone(t("webhooks.tested")),
    onError: sayError,
    onSettled: refresh,
  });
  const enable = useMutation({
    mutationFn: (enabled: boolean) =>
      data(api.PATCH("/api/webhooks/{id}", { ...path, body: { ...asItIs, enabled } })),
    onSuccess: (_, enabled) => enabled && sayDone(t("webhooks.enabledNow")),
    onError: sayError,
    onSettled: () => {
      close();
      refresh();
    },
  });
  const remove = useMutation({
    mutationFn: () => data(api.DELETE("/api/webhooks/{id}", path)),
    onSuccess: () => {
      sayDone(t("webhooks.removed"));
      onRemoved?.();
    },
    onError: sayError,
    onSettled: () => {
      close();
      refresh();
    },
  });
  if (!may("operate")) return null;
  const { url } = webhook;
  return (
    <Group gap={4} wrap="nowrap" justify="flex-end">
      {webhook.enabled ? (
        <Button
          size="xs"
          variant="default"
          loading={test.isPending}
          onClick={() => test.mutate()}
          aria-label={`${t("webhooks.test")} ${url}`}
        >
          {t("webhooks.test")}
        </Button>
      ) : (
        <Button
          size="xs"
          variant="default"
          loading={enable.isPending}
          onClick={() => enable.mutate(true)}
          aria-label={`${t("webhooks.enable")} ${url}`}
        >
          {t("webhooks.enable")}
        </Button>
      )}
      <Menu position="bottom-end">
        <Menu.Target>
          <ActionIcon variant="subtle" color="gray" aria-label={t("webhooks.more", { url })}>
            <IconDots size={16} />
          </ActionIcon>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Item onClick={() => setAsked("edit")}>{t("webhooks.edit")}</Menu.Item>
          <Menu.Item onClick={() => setAsked("rotate")}>{t("webhooks.rotate")}</Menu.Item>
          {webhook.enabled && (
            <Menu.Item onClick={() => setAsked("disable")}>{t("webhooks.disable")}</Menu.Item>
          )}
          <Menu.Divider />
          <Menu.Item c={red} onClick={() => setAsked("remove")}>
            {t("webhooks.remove")}
          </Menu.Item>
        </Menu.Dropdown>
      </Menu>
      {asked === "edit" && <WebhookForm webhook={webhook} onDone={close} />}
      {asked === "rotate" && <RotateSecret webhook={webhook} onDone={close} />}
      <Confirm
        opened={asked === "disable"}
        onClose={close}
        title={t("webhooks.disableTitle")}
        text={t("webhooks.disableText", { url })}
        confirm={t("webhooks.disableConfirm")}
        danger={false}
        busy={enable.isPending}
        onConfirm={() => enable.mutate(false)}
      />
      <Confirm
        opened={asked === "remove"}
        onClose={close}
        title={t("webhooks.removeTitle")}
        text={t("webhooks.removeText", { url })}
        confirm={t("webhooks.removeConfirm")}
        busy={remove.isPending}
        onConfirm={() => remove.mutate()}
      />
    </Group>
  );
}
