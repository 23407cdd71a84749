import { Button, Checkbox, Group, Modal, MultiSelect, Stack, Table, Text, TextInput } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { IconWebhook } from "@tabler/icons-react";
import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { type FormEvent, useState } from "react";
import { useTranslation } from "react-i18next";
import * as v from "valibot";
import { api, type Delivery, type DeliveryState, data, type EventKind, type Webhook } from "@/api/client";
import {
  COUNTED,
  countDeliveriesQuery,
  type DeliveryFilter,
  deliveriesQuery,
  queryKeys,
} from "@/api/queries";
import { Empty, Rows } from "@/components/parts";
import { TableCard } from "@/components/table-card";
import { DeliveryBadge, kinds, kindText } from "@/components/webhooks";
import { ago, dateTime, useNow } from "@/lib/format";
import { sayDone, sayError } from "@/lib/session";

const states = ["pending", "held", "delivered", "failed"] as const satisfies DeliveryState[];
const everyKind = [...kinds, "webhook.test"] as const;

/** The filters of a list of deliveries, as its page's address keeps them. */
export const deliverySearch = v.object({
  state: v.optional(v.fallback(v.optional(v.array(v.picklist(states))), undefined)),
  type: v.optional(v.fallback(v.optional(v.array(v.picklist(everyKind))), undefined)),
});

/** Deliveries, of one endpoint or of all. */
export function Deliveries({
  filter,
  webhook,
  onFilter,
}: {
  filter: DeliveryFilter;
  webhook?: Webhook;
  onFilter: (filter: { state?: DeliveryState[]; type?: EventKind[] }) => void;
}) {
  const { t } = useTranslation();
  const now = useNow();
  const {
    data: pages,
    hasNextPage,
    fetchNextPage,
    isFetchingNextPage,
    error,
  } = useInfiniteQuery(deliveriesQuery({ ...filter, webhook: webhook?.id }));
  const deliveries = pages?.pages.flatMap((page) => page.deliveries) ?? [];
  const filtered = Boolean(filter.state?.length || filter.type?.length);
  return (
    <Stack gap="sm">
      <Group gap="xs" component="search" aria-label={t("common.filters")}>
        <MultiSelect
          aria-label={t("webhooks.state")}
          placeholder={filter.state?.length ? "" : t("webhooks.state")}
          data={states.map((value) => ({ value, label: t(`webhooks.is.${value}`) }))}
          value={filter.state ?? []}
          onChange={(state) => onFilter({ ...filter, state: state as DeliveryState[] })}
          w={{ base: "100%", sm: "auto" }}
          miw={180}
          clearable
          clearButtonProps={{ "aria-label": t("common.clear") }}
        />
        <MultiSelect
          aria-label={t("webhooks.event")}
          placeholder={filter.type?.length ? "" : t("webhooks.event")}
          data={everyKind.map((value) => ({ value, label: t(kindText(value)) }))}
          value={filter.type ?? []}
          onChange={(type) => onFilter({ ...filter, type: type as EventKind[] })}
          w={{ base: "100%", sm: "auto" }}
          miw={180}
          clearable
          clearButtonProps={{ "aria-label": t("common.clear") }}
        />
      </Group>
      <TableCard label={t("webhooks.deliveries")} minWidth={720}>
        {error ? (
          <Empty title={t("common.error")} text={error.message} />
        ) : !pages ? (
          <Rows />
        ) : deliveries.length === 0 ? (
          <Empty
            icon={<IconWebhook size={28} stroke={1.4} />}
            title={t(filtered ? "webhooks.noneFit" : "webhooks.noDeliveries")}
            text={t(filtered ? "webhooks.noneFitText" : "webhooks.noDeliveriesText")}
            action={
              filtered && (
                <Button variant="default" onClick={() => onFilter({})}>
                  {t("common.clear")}
                </Button>
              )
            }
          />
        ) : (
          <Table highlightOnHover>
            <Table.Thead>
              <Table.Tr>
                <Table.Th w={130}>{t("webhooks.state")}</Table.Th>
                <Table.Th>{t("webhooks.event")}</Table.Th>
                {!webhook && <Table.Th>{t("webhooks.to")}</Table.Th>}
                <Table.Th>{t("webhooks.ofJob")}</Table.Th>
                <Table.Th ta="right">{t("webhooks.tries")}</Table.Th>
                <Table.Th ta="right">{t("webhooks.happened")}</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {deliveries.map((delivery) => (
                <Row key={delivery.id} delivery={delivery} now={now} withUrl={!webhook} />
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
    </Stack>
  );
}

function Row({ delivery, now, withUrl }: { delivery: Delivery; now: number; withUrl: boolean }) {
  const { t } = useTranslation();
  return (
    <Table.Tr>
      <Table.Td>
        <DeliveryBadge state={delivery.state} />
        {delivery.state === "pending" && delivery.tries > 0 && delivery.next_try_at && (
          <Text size="xs" c="dimmed">
            {t("webhooks.nextTry", { time: ago(delivery.next_try_at, now) })}
          </Text>
        )}
      </Table.Td>
      <Table.Td>
        <Link to="/webhooks/deliveries/$id" params={{ id: delivery.id }} className="row-link">
          {t(kindText(delivery.type))}
        </Link>
      </Table.Td>
      {withUrl && (
        <Table.Td maw={320}>
          <Text inherit truncate title={delivery.url}>
            {delivery.url}
          </Text>
          {!delivery.webhook && (
            <Text size="xs" c="dimmed">
              {t("webhooks.ownUrl")}
            </Text>
          )}
        </Table.Td>
      )}
      <Table.Td>
        {delivery.job ? (
          <Link to="/jobs/$id" params={{ id: delivery.job }} className="row-link mono">
            {delivery.job.slice(0, 8)}…{delivery.job.slice(-6)}
          </Link>
        ) : (
          <Text span c="dimmed" inherit>
            –
          </Text>
        )}
      </Table.Td>
      <Table.Td ta="right" className="num">
        {delivery.tries}
      </Table.Td>
      <Table.Td ta="right" className="num" c="dimmed" title={dateTime(delivery.event_at)}>
        {ago(delivery.event_at, now)}
      </Table.Td>
    </Table.Tr>
  );
}

const DAY = 86_400_000;

/** A time as a field for local times has it. */
function local(time: number): string {
  const at = new Date(time);
  return new Date(time - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

/** Sends an endpoint's deliveries anew, since a time. */
export function ReplaySince({ webhook }: { webhook: Webhook }) {
  const { t } = useTranslation();
  const [opened, { open, close }] = useDisclosure();
  return (
    <>
      <Button
        variant="default"
        size="xs"
        onClick={open}
        disabled={!webhook.enabled}
        title={webhook.enabled ? undefined : t("webhooks.disabledHint")}
      >
        {t("webhooks.replayTitle")}
      </Button>
      <Modal
        opened={opened}
        onClose={close}
        title={<Text fw={600}>{t("webhooks.replayTitle")}</Text>}
        closeButtonProps={{ "aria-label": t("common.close") }}
      >
        <ReplayForm webhook={webhook} onDone={close} />
      </Modal>
    </>
  );
}

function ReplayForm({ webhook, onDone }: { webhook: Webhook; onDone: () => void }) {
  const { t } = useTranslation();
  const queries = useQueryClient();
  const [since, setSince] = useState(() =>
    local(webhook.failing_since ? new Date(webhook.failing_since).getTime() : Date.now() - DAY),
  );
  const [chosen, setChosen] = useState<string[]>(["failed", "held"]);
  const at = new Date(since);
  const valid = !Number.isNaN(at.getTime()) && chosen.length > 0;
  const from = valid ? at.toISOString() : "";
  const state = chosen as DeliveryState[];
  const { data: found } = useQuery({
    ...countDeliveriesQuery({ webhook: webhook.id, state, from }),
    enabled: valid,
  });
  const replay = useMutation({
    mutationFn: () =>
      data(
        api.POST("/api/webhooks/{id}/replay", {
          params: { path: { id: webhook.id } },
          body: { since: from, states: state },
        }),
      ),
    onSuccess: ({ replayed }) => {
      sayDone(t("webhooks.replayed", { count: replayed }));
      onDone();
    },
    onError: sayError,
    onSettled: () => queries.invalidateQueries({ queryKey: queryKeys.deliveries }),
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    replay.mutate();
  };
  const count = found?.count ?? 0;
  return (
    <form onSubmit={submit}>
      <Stack>
        <Text size="sm" c="dimmed">
          {t("webhooks.replayText")}
        </Text>
        <TextInput
          type="datetime-local"
          label={t("webhooks.replaySince")}
          value={since}
          onChange={(event) => setSince(event.currentTarget.value)}
          required
        />
        <Checkbox.Group label={t("webhooks.replayStates")} value={chosen} onChange={setChosen}>
          <Group gap="md" mt="xs">
            {states.map((value) => (
              <Checkbox key={value} value={value} label={t(`webhooks.is.${value}`)} />
            ))}
          </Group>
        </Checkbox.Group>
        <Group justify="flex-end">
          <Button variant="default" onClick={onDone}>
            {t("common.cancel")}
          </Button>
          <Button type="submit" loading={replay.isPending} disabled={!valid || count === 0}>
            {count === 0
              ? t("webhooks.replayNone")
              : found?.more
                ? t("webhooks.replayMany", { count: COUNTED })
                : t("webhooks.replayCount", { count })}
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
