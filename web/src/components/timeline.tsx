import { Group, Text } from "@mantine/core";
import type { CSSProperties, ReactNode } from "react";
import { useTranslation } from "react-i18next";
import type { Attempt, Job } from "@/api/client";
import { outcomeColor } from "@/components/parts";
import { dateTime, duration, useNow } from "@/lib/format";

const ms = (time: string | null | undefined) => (time ? new Date(time).getTime() : 0);

function Step({
  color,
  title,
  aside,
  children,
}: {
  color: string;
  title: string;
  aside?: string | undefined;
  children?: ReactNode;
}) {
  return (
    <li style={{ "--dot": color } as CSSProperties}>
      <Group justify="space-between" gap="xs" wrap="nowrap">
        <Text size="sm" fw={550}>
          {title}
        </Text>
        {aside && (
          <Text size="xs" c="dimmed" className="num">
            {aside}
          </Text>
        )}
      </Group>
      {children}
    </li>
  );
}

/** Where a job has been, and why it moved. */
export function Timeline({ job }: { job: Job }) {
  const { t } = useTranslation();
  const now = useNow();
  const attempts = job.attempts ?? [];
  const grey = "light-dark(#9aa1ab, #6b737f)";
  const inFlight = job.state === "dispatched" || job.state === "running";
  const outcome = (attempt: Attempt) => t(`outcome.${attempt.outcome as "completed"}`, attempt.outcome);
  return (
    <ol className="steps">
      <Step color={grey} title={t("job.accepted")} aside={dateTime(job.created_at)}>
        <Text size="xs" c="dimmed">
          {job.client}
        </Text>
      </Step>
      {attempts.map((attempt, index) => {
        const next = attempts[index + 1];
        const moved = next ? (next.account === attempt.account ? t("job.again") : t("job.moved")) : undefined;
        const ran = ms(attempt.finished_at) - ms(attempt.started_at ?? attempt.dispatched_at);
        return (
          <Step
            key={attempt.number}
            color={outcomeColor(attempt.outcome)}
            title={`${attempt.number}. ${attempt.account}`}
            aside={duration(ran)}
          >
            <Text size="xs" fw={500}>
              {outcome(attempt)}
              {attempt.error && ` · ${attempt.error.message}`}
            </Text>
            <Text size="xs" c="dimmed">
              {attempt.worker && `${t("job.worker")} ${attempt.worker}`}
            </Text>
            {moved && (
              <Text size="xs" c="dimmed" fs="italic">
                {moved}
              </Text>
            )}
          </Step>
        );
      })}
      {inFlight && (
        <Step
          color="light-dark(#3370e2, #6695f1)"
          title={`${job.attempt}. ${job.account ?? ""}`}
          aside={duration(now - ms(job.started_at ?? job.dispatched_at))}
        >
          <Text size="xs" fw={500}>
            {t(`state.${job.cancel_requested ? "cancelling" : job.state}`)}
          </Text>
        </Step>
      )}
      {job.state === "queued" && (
        <Step color={grey} title={t("job.waiting")} aside={duration(now - ms(job.created_at))}>
          {job.run_at && (
            <Text size="xs" c="dimmed">
              {t("job.notBefore", { time: dateTime(job.run_at) })}
            </Text>
          )}
        </Step>
      )}
      {job.finished_at && (
        <Step
          color={
            job.state === "succeeded"
              ? "light-dark(#1f9254, #3fb877)"
              : job.state === "failed"
                ? "light-dark(#d0342c, #f0645c)"
                : grey
          }
          title={t(`state.${job.state}`)}
          aside={dateTime(job.finished_at)}
        >
          {job.error && (
            <Text size="xs" c="dimmed">
              {job.error.message}
            </Text>
          )}
        </Step>
      )}
    </ol>
  );
}
