import { Alert, Button, FileInput, Group, List, Modal, Stack, Switch, Text, TextInput } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { IconDownload, IconFileText, IconUpload } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { type CSSProperties, type FormEvent, useState } from "react";
import { useTranslation } from "react-i18next";
import { ApiError, api, type Batch, type BatchState, data } from "@/api/client";
import { estimateQuery, queryKeys } from "@/api/queries";
import { blue, Confirm, green, grey, Pill, stateColors } from "@/components/parts";
import { bytes, duration, number, useNow } from "@/lib/format";
import { sayDone, sayError, useSession } from "@/lib/session";

const stateColor: Record<BatchState, string> = { running: blue, cancelling: grey, ended: green };

export function BatchBadge({ state }: { state: BatchState }) {
  const { t } = useTranslation();
  return <Pill color={stateColor[state]}>{t(`batches.is.${state}`)}</Pill>;
}

export const nameOf = (batch: Batch) => batch.name ?? `${batch.id.slice(0, 8)}…${batch.id.slice(-6)}`;

const inOrder = ["succeeded", "failed", "cancelled", "expired", "running", "dispatched", "queued"] as const;

/** How many jobs are in each state. Lines that are not jobs yet wait, too. */
export function countsOf(batch: Batch) {
  const { succeeded = 0, failed = 0, cancelled = 0, expired = 0, running = 0, dispatched = 0 } = batch.counts;
  const ended = succeeded + failed + cancelled + expired;
  const queued = Math.max(0, batch.total - ended - running - dispatched);
  const by = { succeeded, failed, cancelled, expired, running, dispatched, queued };
  return { ended, parts: inOrder.map((state) => ({ state, count: by[state], color: stateColors[state] })) };
}

/** A bar with a piece for each state; what waits is the ground. */
export function BatchBar({ batch, tall }: { batch: Batch; tall?: boolean }) {
  const { t } = useTranslation();
  const { ended, parts } = countsOf(batch);
  const said = parts.filter(({ count }) => count > 0);
  const text = t("batches.bar", {
    done: number(ended),
    total: number(batch.total),
    parts: said.map(({ state, count }) => `${t(`state.${state}`)} ${number(count)}`).join(", "),
  });
  return (
    <div className={`bar split${tall ? " tall" : ""}`} role="img" aria-label={text} title={text}>
      {said
        .filter(({ state }) => state !== "queued")
        .map(({ state, count, color }) => (
          <div
            key={state}
            style={{ "--dot": color, width: `${(count / batch.total) * 100}%` } as CSSProperties}
          />
        ))}
    </div>
  );
}

/** When a batch may end, in words. */
export function Estimate({ at }: { at: string | null | undefined }) {
  const { t } = useTranslation();
  const now = useNow();
  if (!at) return t("batches.waits");
  const left = new Date(at).getTime() - now;
  return left < 1_000 ? t("batches.soon") : t("batches.about", { time: duration(left) });
}

/** As [`Estimate`], for a row of a list, which does not tell it. */
export function RowEstimate({ batch }: { batch: Batch }) {
  const { data: at, isPending } = useQuery({
    ...estimateQuery(batch.id),
    enabled: batch.state === "running",
  });
  if (batch.state !== "running" || isPending) return "–";
  return <Estimate at={at} />;
}

/** Ends a batch, for those who may. */
export function CancelBatch({ batch, compact }: { batch: Batch; compact?: boolean }) {
  const { t } = useTranslation();
  const { may, client } = useSession();
  const queries = useQueryClient();
  const [asks, { open, close }] = useDisclosure();
  const cancel = useMutation({
    mutationFn: () => data(api.POST("/api/batches/{id}/cancel", { params: { path: { id: batch.id } } })),
    onSuccess: () => sayDone(t("batches.cancelled")),
    onError: sayError,
    onSettled: () => {
      close();
      queries.invalidateQueries({ queryKey: queryKeys.batches });
    },
  });
  const mine = may("operate") || (may("submit") && batch.client === client);
  if (!mine || batch.state === "ended") return null;
  const count = batch.total - countsOf(batch).ended;
  return (
    <>
      <Button
        size={compact ? "xs" : "sm"}
        variant="default"
        disabled={batch.state === "cancelling"}
        onClick={open}
        aria-label={compact ? `${t("batches.cancel")} ${nameOf(batch)}` : undefined}
      >
        {t(compact ? "batches.cancel" : "batches.cancelBatch")}
      </Button>
      <Confirm
        opened={asks}
        onClose={close}
        title={t("batches.cancelTitle", { name: nameOf(batch) })}
        text={t("batches.cancelText", { count })}
        confirm={t("batches.cancelConfirm", { count })}
        busy={cancel.isPending}
        onConfirm={() => cancel.mutate()}
      />
    </>
  );
}

/** The browser takes the results straight to a file: they may be larger than what a page holds. */
export function DownloadResults({ batch }: { batch: Batch }) {
  const { t } = useTranslation();
  const name = (batch.name ?? batch.id).replaceAll(/[^\p{L}\p{N}._-]+/gu, "-");
  return (
    <Button
      component="a"
      href={batch.results_url}
      download={`${name}.results.jsonl`}
      variant={batch.state === "ended" ? "filled" : "default"}
      leftSection={<IconDownload size={16} aria-hidden />}
    >
      {t(batch.state === "ended" ? "batches.download" : "batches.downloadSoFar")}
    </Button>
  );
}

/** A key that no other upload has. `randomUUID` is there on secure origins only. */
const freshKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join(
    "",
  );

export function UploadBatch() {
  const { t } = useTranslation();
  const [opened, { open, close }] = useDisclosure();
  const { may } = useSession();
  if (!may("submit")) return null;
  return (
    <>
      <Button leftSection={<IconUpload size={16} aria-hidden />} onClick={open}>
        {t("batches.upload")}
      </Button>
      <Modal
        opened={opened}
        onClose={close}
        size="lg"
        title={<Text fw={600}>{t("batches.upload")}</Text>}
        closeButtonProps={{ "aria-label": t("common.close") }}
      >
        <UploadForm onDone={close} />
      </Modal>
    </>
  );
}

type Upload = { file: File | null; name: string; partial: boolean; key: string };

function UploadForm({ onDone }: { onDone: () => void }) {
  const { t } = useTranslation();
  const queries = useQueryClient();
  const navigate = useNavigate();
  const [form, setForm] = useState<Upload>(() => ({ file: null, name: "", partial: false, key: freshKey() }));
  const upload = useMutation({
    mutationFn: async ({ file, name, partial, key }: Upload & { file: File }) => {
      await file
        .slice(0, 1)
        .arrayBuffer()
        .catch(() => {
          throw new Error(t("batches.fileChanged"));
        });
      const query = { ...(name.trim() ? { name: name.trim() } : {}), ...(partial ? { partial } : {}) };
      return data(
        api.POST("/api/batches", {
          params: { query, header: { "Idempotency-Key": key } },
          headers: { "Content-Type": "application/jsonl" },
          // The browser reads the file as it sends it: it may be large.
          body: file as never,
          bodySerializer: (body) => body as never,
        }),
      );
    },
    onSuccess: (batch) => {
      onDone();
      queries.invalidateQueries({ queryKey: queryKeys.batches });
      navigate({ to: "/batches/$id", params: { id: batch.id } });
    },
  });
  // The key stands for this upload and no other, so that one more try makes no second batch.
  const set = (change: Partial<Upload>) => {
    upload.reset();
    setForm((old) => ({ ...old, ...change, key: freshKey() }));
  };
  const { file } = form;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (file && !upload.isPending) upload.mutate({ ...form, file });
  };
  return (
    <form onSubmit={submit}>
      <Stack>
        <FileInput
          label={t("batches.file")}
          description={t("batches.fileHint")}
          placeholder={t("batches.filePick")}
          leftSection={<IconFileText size={16} aria-hidden />}
          accept=".jsonl,.ndjson,.json,.txt,application/jsonl"
          value={file}
          onChange={(file) =>
            set({ file, ...(file && !form.name ? { name: file.name.replace(/\.[^.]*$/, "") } : {}) })
          }
          required
          data-autofocus
        />
        <TextInput
          label={t("batches.name")}
          description={t("batches.nameHint")}
          value={form.name}
          maxLength={255}
          onChange={(event) => set({ name: event.currentTarget.value })}
        />
        <Switch
          label={t("batches.partial")}
          description={t("batches.partialHint")}
          checked={form.partial}
          onChange={(event) => set({ partial: event.currentTarget.checked })}
        />
        {upload.error && <Refused error={upload.error} />}
        <Group justify="flex-end">
          {upload.isPending && file && (
            <Text size="sm" c="dimmed" role="status">
              {t("batches.uploading", { size: bytes(file.size) })}
            </Text>
          )}
          <Button variant="default" onClick={onDone}>
            {t("common.cancel")}
          </Button>
          <Button type="submit" loading={upload.isPending} disabled={!file}>
            {t("batches.submit")}
          </Button>
        </Group>
      </Stack>
    </form>
  );
}

/** Why an upload was not taken, line by line when lines are at fault. */
function Refused({ error }: { error: Error }) {
  const { t } = useTranslation();
  const lines = (error instanceof ApiError && error.problem?.errors) || [];
  return (
    <Alert color="red" role="alert" title={t("batches.refused")}>
      {lines.length === 0 ? (
        <Text size="sm">{error.message}</Text>
      ) : (
        <List size="sm" listStyleType="none" mah={260} className="scrolls" tabIndex={0}>
          {lines.map(({ field, detail }) => (
            <List.Item key={`${field} ${detail}`}>
              <Text span fw={550} inherit className="num">
                {lineOf(field, t("batches.line"))}
              </Text>{" "}
              {detail}
            </List.Item>
          ))}
        </List>
      )}
    </Alert>
  );
}

/** `line 3` in the reader's language; any other field as it is. */
const lineOf = (field: string, line: string) => field.replace(/^line /, `${line} `);
