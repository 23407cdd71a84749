import { Group, Text } from "@mantine/core";
import { IconMessage } from "@tabler/icons-react";
import { useTranslation } from "react-i18next";
import type { Job } from "@/api/client";
import { Copy, Empty, Pill, Section } from "@/components/parts";
import { money, number } from "@/lib/format";

const over = (job: Job) => Boolean(job.finished_at);

/** A job's answer, as it comes. */
export function Answer({
  job,
  stream,
  title,
}: {
  job: Job;
  stream: { text: string; live: boolean };
  title: string;
}) {
  const { t } = useTranslation();
  const text = job.result?.text ?? stream.text;
  const streaming = !over(job) && stream.text !== "";
  const usage = job.result?.usage;
  return (
    <Section
      title={title}
      aside={
        streaming ? (
          <Pill color="light-dark(#3370e2, #6695f1)">{t("job.streaming")}</Pill>
        ) : text ? (
          <Copy value={text} label={`${title}: ${t("common.copy")}`} />
        ) : undefined
      }
    >
      {text ? (
        <div className={`prose${streaming ? " caret" : ""}`} data-testid="answer">
          {text}
        </div>
      ) : job.error && over(job) ? (
        <Text size="sm">
          <Text span c="light-dark(#b3261e, #f0847d)" fw={550} inherit className="mono">
            {job.error.code}
          </Text>{" "}
          {job.error.message}
        </Text>
      ) : (
        <Empty
          icon={<IconMessage size={26} stroke={1.4} />}
          title={t(over(job) ? "job.noAnswerEnded" : "job.noAnswer")}
          text={over(job) ? (job.error?.message ?? "") : t("job.noAnswerText")}
        />
      )}
      {usage && (
        <Group gap="lg" mt="md">
          <Text size="xs" c="dimmed" className="num">
            {t("job.tokens", {
              input: number(usage.input_tokens ?? 0),
              output: number(usage.output_tokens ?? 0),
            })}
          </Text>
          {usage.cost_microusd != null && (
            <Text size="xs" c="dimmed" className="num">
              {money(usage.cost_microusd)}
            </Text>
          )}
          {job.result?.model && (
            <Text size="xs" c="dimmed">
              {job.result.model}
            </Text>
          )}
        </Group>
      )}
    </Section>
  );
}
