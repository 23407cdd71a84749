import {
  Alert,
  Autocomplete,
  Button,
  Collapse,
  Grid,
  Group,
  NumberInput,
  Select,
  SimpleGrid,
  Stack,
  Tabs,
  TagsInput,
  Text,
  Textarea,
} from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { IconChevronDown, IconSparkles } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { createFileRoute, Link } from "@tanstack/react-router";
import { type FormEvent, type KeyboardEvent, useEffect, useState } from "react";
import { useTranslation } from "react-i18next";
import * as v from "valibot";
import { api, data, type NewJob } from "@/api/client";
import { accountsQuery, jobQuery } from "@/api/queries";
import { Answer } from "@/components/answer";
import { Code, Empty, Page, Rows, Section, StateBadge } from "@/components/parts";
import { Timeline } from "@/components/timeline";
import { useJobStream } from "@/lib/live";
import { useSession } from "@/lib/session";
import { curl, python, rust, tidy } from "@/lib/snippets";

export const Route = createFileRoute("/_app/playground")({
  validateSearch: v.object({ from: v.optional(v.fallback(v.optional(v.string()), undefined)) }),
  component: Playground,
});

type Form = {
  prompt: string;
  system: string;
  account: string | null;
  tags: string[];
  model: string;
  priority: number | string;
  maxTokens: number | string;
  temperature: number | string;
};

const blank: Form = {
  prompt: "",
  system: "",
  account: null,
  tags: [],
  model: "",
  priority: "",
  maxTokens: "",
  temperature: "",
};

function asJob(form: Form): NewJob {
  const params: Record<string, number> = {};
  if (form.maxTokens !== "") params.max_tokens = Number(form.maxTokens);
  if (form.temperature !== "") params.temperature = Number(form.temperature);
  return tidy({
    prompt: form.prompt,
    system: form.system,
    model: form.model,
    account: form.account ?? undefined,
    tags: form.tags,
    priority: form.priority === "" ? undefined : Number(form.priority),
    params,
  } as NewJob);
}

function Playground() {
  const { t } = useTranslation();
  const { from } = Route.useSearch();
  const { may } = useSession();
  const { data: accounts } = useQuery(accountsQuery);
  const { data: before } = useQuery({ ...jobQuery(from ?? ""), enabled: Boolean(from) });
  const [form, setForm] = useState(blank);
  const [optionsShown, { toggle, open }] = useDisclosure();
  const [id, setId] = useState<string>();
  const set = (change: Partial<Form>) => setForm((old) => ({ ...old, ...change }));
  useEffect(() => {
    if (!before) return;
    const kept = before.request as unknown as {
      messages: { role: string; content: string }[];
      system?: string;
      model?: string;
      params?: Record<string, number>;
    };
    const lane = new URLSearchParams(before.lane === "any" ? "" : before.lane);
    setForm({
      prompt: kept.messages
        .filter(({ role }) => role === "user")
        .map(({ content }) => content)
        .join("\n\n"),
      system: kept.system ?? "",
      account: lane.get("account"),
      tags: lane.getAll("tag"),
      model: kept.model ?? "",
      priority: before.priority || "",
      maxTokens: kept.params?.max_tokens ?? "",
      temperature: kept.params?.temperature ?? "",
    });
    open();
  }, [before, open]);
  const submit = useMutation({
    mutationFn: async () => (await data(api.POST("/api/jobs", { body: asJob(form) }))) as { id: string },
    onSuccess: (receipt) => setId(receipt.id),
  });
  const ready = form.prompt.trim() !== "" && may("submit");
  const send = (event?: FormEvent) => {
    event?.preventDefault();
    if (ready && !submit.isPending) submit.mutate();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  };
  const models = [...new Set(accounts?.flatMap((account) => account.models) ?? [])];
  const tags = [...new Set(accounts?.flatMap((account) => account.tags) ?? [])];
  const job = asJob(form);
  return (
    <Page title={t("playground.title")}>
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, md: 6 }}>
          <Stack gap="lg">
            <Section title={t("playground.prompt")}>
              <form onSubmit={send}>
                <Stack gap="md">
                  {!may("submit") && (
                    <Alert color="yellow">
                      <Text size="sm">{t("playground.noRight")}</Text>
                    </Alert>
                  )}
                  <Textarea
                    aria-label={t("playground.prompt")}
                    placeholder={t("playground.placeholder")}
                    autosize
                    minRows={6}
                    maxRows={18}
                    value={form.prompt}
                    onChange={(event) => set({ prompt: event.currentTarget.value })}
                    onKeyDown={onKeyDown}
                  />
                  <SimpleGrid cols={{ base: 1, xs: 2 }}>
                    <Select
                      label={t("playground.lane")}
                      placeholder={t("playground.anyAccount")}
                      data={accounts?.map((account) => account.id) ?? []}
                      value={form.account}
                      onChange={(account) => set({ account })}
                      clearable
                      clearButtonProps={{ "aria-label": t("common.clear") }}
                    />
                    <Autocomplete
                      label={t("playground.model")}
                      placeholder={t("playground.anyModel")}
                      data={models}
                      value={form.model}
                      onChange={(model) => set({ model })}
                    />
                  </SimpleGrid>
                  <Collapse expanded={optionsShown}>
                    <Stack gap="md">
                      <Textarea
                        label={t("playground.system")}
                        autosize
                        minRows={2}
                        value={form.system}
                        onChange={(event) => set({ system: event.currentTarget.value })}
                        onKeyDown={onKeyDown}
                      />
                      <TagsInput
                        label={t("playground.tags")}
                        data={tags}
                        value={form.tags}
                        onChange={(value) => set({ tags: value })}
                      />
                      <SimpleGrid cols={3}>
                        <NumberInput
                          label={t("playground.priority")}
                          min={-100}
                          max={100}
                          placeholder="0"
                          value={form.priority}
                          onChange={(priority) => set({ priority })}
                        />
                        <NumberInput
                          label={t("playground.maxTokens")}
                          min={1}
                          value={form.maxTokens}
                          onChange={(maxTokens) => set({ maxTokens })}
                        />
                        <NumberInput
                          label={t("playground.temperature")}
                          min={0}
                          max={2}
                          step={0.1}
                          value={form.temperature}
                          onChange={(temperature) => set({ temperature })}
                        />
                      </SimpleGrid>
                    </Stack>
                  </Collapse>
                  {submit.error && (
                    <Alert color="red" role="alert">
                      <Text size="sm">{submit.error.message}</Text>
                    </Alert>
                  )}
                  <Group justify="space-between">
                    <Button
                      variant="subtle"
                      color="gray"
                      c="dimmed"
                      onClick={toggle}
                      aria-expanded={optionsShown}
                      rightSection={
                        <IconChevronDown
                          size={16}
                          style={{ transform: optionsShown ? "rotate(180deg)" : undefined }}
                        />
                      }
                    >
                      {t("playground.options")}
                    </Button>
                    <Button
                      type="submit"
                      disabled={!ready}
                      loading={submit.isPending}
                      title={t("playground.shortcut")}
                    >
                      {t("playground.submit")}
                    </Button>
                  </Group>
                </Stack>
              </form>
            </Section>
            <Section title={t("playground.code")}>
              <Tabs defaultValue="curl" keepMounted={false}>
                <Tabs.List>
                  <Tabs.Tab value="curl">curl</Tabs.Tab>
                  <Tabs.Tab value="python">Python</Tabs.Tab>
                  <Tabs.Tab value="rust">Rust</Tabs.Tab>
                </Tabs.List>
                {[
                  ["curl", curl(job)],
                  ["python", python(job)],
                  ["rust", rust(job)],
                ].map(([name = "", text = ""]) => (
                  <Tabs.Panel key={name} value={name} pt="sm">
                    <Code text={text} label={name} />
                  </Tabs.Panel>
                ))}
              </Tabs>
            </Section>
          </Stack>
        </Grid.Col>
        <Grid.Col span={{ base: 12, md: 6 }}>
          {id ? (
            <Result id={id} />
          ) : (
            <Section title={t("playground.result")}>
              <Empty
                icon={<IconSparkles size={28} stroke={1.4} />}
                title={t("playground.empty")}
                text={t("playground.emptyText")}
              />
            </Section>
          )}
        </Grid.Col>
      </Grid>
    </Page>
  );
}

function Result({ id }: { id: string }) {
  const { t } = useTranslation();
  const { data: job } = useQuery(jobQuery(id));
  const stream = useJobStream(id);
  if (!job) return <Rows />;
  return (
    <Stack gap="lg">
      <Answer job={job} stream={stream} title={t("playground.result")} />
      <Section
        title={t("job.timeline")}
        aside={<StateBadge state={job.state} cancelling={job.cancel_requested} />}
      >
        <Timeline job={job} />
        <Text size="sm" mt="md">
          <Link to="/jobs/$id" params={{ id }} className="text-link">
            {t("playground.open")}
          </Link>
        </Text>
      </Section>
    </Stack>
  );
}
