import {
  ActionIcon,
  Box,
  Button,
  Card,
  CopyButton,
  Group,
  Modal,
  Skeleton,
  Stack,
  Table,
  Text,
  Title,
  Tooltip,
} from "@mantine/core";
import { IconCheck, IconCopy } from "@tabler/icons-react";
import type { ReactNode } from "react";
import { useTranslation } from "react-i18next";
import type { Account, JobState } from "@/api/client";

export const green = "light-dark(#1f9254, #3fb877)";
export const red = "light-dark(#d0342c, #f0645c)";
export const amber = "light-dark(#c27803, #e2a336)";
export const blue = "light-dark(#3370e2, #6695f1)";
export const grey = "light-dark(#9aa1ab, #6b737f)";

export const stateColors: Record<JobState, string> = {
  queued: grey,
  dispatched: amber,
  running: blue,
  succeeded: green,
  failed: red,
  cancelled: grey,
  expired: grey,
};

export function Pill({ color, children }: { color: string; children: ReactNode }) {
  return (
    <span className="pill">
      <span className="dot" style={{ "--dot": color } as React.CSSProperties} />
      {children}
    </span>
  );
}

export function StateBadge({
  state,
  cancelling,
  scheduled,
}: {
  state: JobState;
  cancelling?: boolean | undefined;
  scheduled?: boolean;
}) {
  const { t } = useTranslation();
  return (
    <Pill color={stateColors[state]}>
      {t(`state.${cancelling ? "cancelling" : scheduled ? "scheduled" : state}`)}
    </Pill>
  );
}

export type Condition = Account["standing"] | "cooling" | "no_worker";

/** An account in one word: what keeps it from work first. */
export function conditionOf(account: Account, now: number): Condition {
  if (account.standing !== "active") return account.standing;
  if (account.workers === 0) return "no_worker";
  if (account.cooldown_until && new Date(account.cooldown_until).getTime() > now) return "cooling";
  return "active";
}

const conditionColors: Record<Condition, string> = {
  active: green,
  paused: grey,
  draining: grey,
  auth_failed: red,
  out_of_credit: red,
  cooling: amber,
  no_worker: red,
};

export function ConditionBadge({ condition }: { condition: Condition }) {
  const { t } = useTranslation();
  return <Pill color={conditionColors[condition]}>{t(`standing.${condition}`)}</Pill>;
}

const outcomeColors: Record<string, string> = {
  completed: green,
  cancelled: grey,
  returned: grey,
  throttled: amber,
  overloaded: amber,
};
export const outcomeColor = (outcome: string) => outcomeColors[outcome] ?? red;

export function Page({
  title,
  actions,
  children,
}: {
  title: string;
  actions?: ReactNode;
  children: ReactNode;
}) {
  return (
    <Stack gap="lg">
      <Group justify="space-between" mih={36}>
        <Title order={1}>{title}</Title>
        {actions}
      </Group>
      {children}
    </Stack>
  );
}

export function Section({
  title,
  aside,
  children,
  flush,
}: {
  title: string;
  aside?: ReactNode;
  children: ReactNode;
  flush?: boolean;
}) {
  return (
    <Card component="section" className={flush ? "table-card" : "fill"}>
      <Group justify="space-between" px={flush ? "lg" : 0} pt={flush ? "md" : 0} pb={flush ? "xs" : "md"}>
        <Title order={2}>{title}</Title>
        {aside}
      </Group>
      {children}
    </Card>
  );
}

/** Nothing is here, and what to do next. */
export function Empty({
  icon,
  title,
  text,
  action,
}: {
  icon?: ReactNode;
  title: string;
  text: string;
  action?: ReactNode;
}) {
  return (
    <Stack align="center" gap={6} py={36} px="md" ta="center">
      {icon && (
        <Box c="dimmed" mb={4}>
          {icon}
        </Box>
      )}
      <Text fw={550} size="sm">
        {title}
      </Text>
      <Text c="dimmed" size="sm" maw={420}>
        {text}
      </Text>
      {action && <Box mt="sm">{action}</Box>}
    </Stack>
  );
}

export function Rows({ count = 6 }: { count?: number }) {
  const { t } = useTranslation();
  return (
    <Stack gap="sm" p="lg" aria-busy="true" role="status" aria-label={t("common.loading")}>
      {Array.from({ length: count }, (_, row) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: they are all alike
        <Skeleton key={row} height={22} radius="sm" />
      ))}
    </Stack>
  );
}

export function Copy({ value, label, children }: { value: string; label?: string; children?: ReactNode }) {
  const { t } = useTranslation();
  return (
    <CopyButton value={value}>
      {({ copied, copy }) =>
        children ? (
          <Button
            variant="default"
            onClick={copy}
            leftSection={copied ? <IconCheck size={16} /> : <IconCopy size={16} />}
          >
            {copied ? t("common.copied") : children}
          </Button>
        ) : (
          <Tooltip label={copied ? t("common.copied") : (label ?? t("common.copy"))}>
            <ActionIcon variant="subtle" color="gray" onClick={copy} aria-label={label ?? t("common.copy")}>
              {copied ? <IconCheck size={16} /> : <IconCopy size={16} />}
            </ActionIcon>
          </Tooltip>
        )
      }
    </CopyButton>
  );
}

export function Code({ text, label }: { text: string; label: string }) {
  return (
    <Box pos="relative">
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and the keyboard must reach that */}
      <section className="code" tabIndex={0} aria-label={label}>
        {text}
      </section>
      <Box pos="absolute" top={8} right={8}>
        <Copy value={text} label={`${label}: copy`} />
      </Box>
    </Box>
  );
}

/** Names and what stands for them; those without a value are left out. */
export function Details({ rows }: { rows: [string, ReactNode][] }) {
  return (
    <Table variant="vertical" verticalSpacing={6} horizontalSpacing={0} withRowBorders={false}>
      <Table.Tbody>
        {rows
          .filter(([, value]) => value)
          .map(([name, value]) => (
            <Table.Tr key={name}>
              <Table.Th w={110} bg="transparent" fw={400} c="dimmed" fz="sm">
                {name}
              </Table.Th>
              <Table.Td fz="sm" style={{ overflowWrap: "anywhere" }}>
                {value}
              </Table.Td>
            </Table.Tr>
          ))}
      </Table.Tbody>
    </Table>
  );
}

type ConfirmProps = {
  opened: boolean;
  title: string;
  text: string;
  confirm: string;
  danger?: boolean;
  busy?: boolean;
  onConfirm: () => void;
  onClose: () => void;
};

/** Asks before something is done; the button names what. */
export function Confirm({
  opened,
  title,
  text,
  confirm,
  danger = true,
  busy = false,
  onConfirm,
  onClose,
}: ConfirmProps) {
  const { t } = useTranslation();
  return (
    <Modal
      opened={opened}
      onClose={onClose}
      title={<Text fw={600}>{title}</Text>}
      closeButtonProps={{ "aria-label": t("common.close") }}
    >
      <Text size="sm" c="dimmed">
        {text}
      </Text>
      <Group justify="flex-end" mt="lg">
        <Button variant="default" onClick={onClose} data-autofocus>
          {t("jobs.keep")}
        </Button>
        <Button color={danger ? "red.9" : undefined} loading={busy} onClick={onConfirm}>
          {confirm}
        </Button>
      </Group>
    </Modal>
  );
}
