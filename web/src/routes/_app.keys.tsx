import {
  Alert,
  Badge,
  Button,
  Group,
  Modal,
  Radio,
  Stack,
  Table,
  Text,
  TextInput,
  VisuallyHidden,
} from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { IconKey, IconLock, IconPlus } from "@tabler/icons-react";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { createFileRoute } from "@tanstack/react-router";
import { type FormEvent, useState } from "react";
import { useTranslation } from "react-i18next";
import { api, data, type Key, type Scope } from "@/api/client";
import { keysQuery, queryKeys } from "@/api/queries";
import { Code, Confirm, Empty, Page, Pill, Rows } from "@/components/parts";
import { TableCard } from "@/components/table-card";
import { dateTime } from "@/lib/format";
import { sayError, scopes, useSession } from "@/lib/session";

export const Route = createFileRoute("/_app/keys")({ component: Keys });

function Keys() {
  const { t } = useTranslation();
  const { may, key: mine } = useSession();
  const { data: keys } = useQuery({ ...keysQuery, enabled: may("admin") });
  const [opened, { open, close }] = useDisclosure();
  const [doomed, setDoomed] = useState<Key>();
  const queries = useQueryClient();
  const revoke = useMutation({
    mutationFn: (key: Key) => data(api.DELETE("/api/keys/{id}", { params: { path: { id: key.id } } })),
    onError: sayError,
    onSettled: () => {
      setDoomed(undefined);
      queries.invalidateQueries({ queryKey: queryKeys.keys });
    },
  });
  if (!may("admin")) {
    return (
      <Page title={t("keys.title")}>
        <Empty
          icon={<IconLock size={28} stroke={1.4} />}
          title={t("keys.noRight")}
          text={t("keys.noRightText")}
        />
      </Page>
    );
  }
  return (
    <Page
      title={t("keys.title")}
      actions={
        <Button leftSection={<IconPlus size={16} />} onClick={open}>
          {t("keys.create")}
        </Button>
      }
    >
      <TableCard label={t("keys.title")} minWidth={720}>
        {!keys ? (
          <Rows />
        ) : keys.length === 0 ? (
          <Empty
            icon={<IconKey size={28} stroke={1.4} />}
            title={t("keys.empty")}
            text={t("keys.emptyText")}
          />
        ) : (
          <Table>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t("keys.name")}</Table.Th>
                <Table.Th>{t("keys.prefix")}</Table.Th>
                <Table.Th>{t("keys.scopes")}</Table.Th>
                <Table.Th>{t("keys.state")}</Table.Th>
                <Table.Th>{t("keys.created")}</Table.Th>
                <Table.Th>
                  <VisuallyHidden>{t("common.actions")}</VisuallyHidden>
                </Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {keys.map((key) => (
                <Table.Tr key={key.id}>
                  <Table.Td fw={500}>
                    {key.name}{" "}
                    {key.id === mine && (
                      <Badge variant="default" fw={450}>
                        {t("keys.mine")}
                      </Badge>
                    )}
                  </Table.Td>
                  <Table.Td className="mono">{key.prefix}…</Table.Td>
                  <Table.Td>{key.scopes.map((scope) => t(`scope.${scope}`)).join(", ")}</Table.Td>
                  <Table.Td>
                    {key.revoked_at ? (
                      <Pill color="light-dark(#9aa1ab, #6b737f)">{t("keys.revoked")}</Pill>
                    ) : (
                      <Pill color="light-dark(#1f9254, #3fb877)">{t("keys.valid")}</Pill>
                    )}
                  </Table.Td>
                  <Table.Td className="num" c="dimmed">
                    {dateTime(key.created_at)}
                  </Table.Td>
                  <Table.Td ta="right">
                    {!key.revoked_at && (
                      <Button
                        size="xs"
                        variant="default"
                        onClick={() => setDoomed(key)}
                        aria-label={`${t("keys.revoke")} ${key.name}`}
                      >
                        {t("keys.revoke")}
                      </Button>
                    )}
                  </Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        )}
      </TableCard>
      <Modal
        opened={opened}
        onClose={close}
        title={<Text fw={600}>{t("keys.create")}</Text>}
        closeButtonProps={{ "aria-label": t("common.close") }}
      >
        <NewKeyForm onDone={close} />
      </Modal>
      {doomed && (
        <Confirm
          opened
          title={t("keys.revokeTitle", { name: doomed.name })}
          text={t("keys.revokeText", { prefix: doomed.prefix })}
          confirm={t("keys.revokeConfirm")}
          busy={revoke.isPending}
          onClose={() => setDoomed(undefined)}
          onConfirm={() => revoke.mutate(doomed)}
        />
      )}
    </Page>
  );
}

function NewKeyForm({ onDone }: { onDone: () => void }) {
  const { t } = useTranslation();
  const queries = useQueryClient();
  const [name, setName] = useState("");
  const [scope, setScope] = useState<Scope>("submit");
  const create = useMutation({
    mutationFn: () => data(api.POST("/api/keys", { body: { name: name.trim(), scopes: [scope] } })),
    onSuccess: () => queries.invalidateQueries({ queryKey: queryKeys.keys }),
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    create.mutate();
  };
  if (create.data) {
    return (
      <Stack>
        <Text fw={550} size="sm">
          {t("keys.secretTitle")}
        </Text>
        <Text size="sm" c="dimmed">
          {t("keys.secretText")}
        </Text>
        <Code text={create.data.key} label={t("signIn.key")} />
        <Group justify="flex-end">
          <Button onClick={onDone}>{t("keys.done")}</Button>
        </Group>
      </Stack>
    );
  }
  return (
    <form onSubmit={submit}>
      <Stack>
        <TextInput
          label={t("keys.name")}
          description={t("keys.nameHint")}
          value={name}
          onChange={(event) => setName(event.currentTarget.value)}
          data-autofocus
          required
        />
        <Radio.Group label={t("keys.scopes")} value={scope} onChange={(value) => setScope(value as Scope)}>
          <Stack gap="xs" mt="xs">
            {scopes.map((value) => (
              <Radio
                key={value}
                value={value}
                label={t(`scope.${value}`)}
                description={t(`scopeIs.${value}`)}
              />
            ))}
          </Stack>
        </Radio.Group>
        {create.error && (
          <Alert color="red" role="alert">
            <Text size="sm">{create.error.message}</Text>
          </Alert>
        )}
        <Group justify="flex-end">
          <Button variant="default" onClick={onDone}>
            {t("common.cancel")}
          </Button>
          <Button type="submit" loading={create.isPending} disabled={!name.trim()}>
            {t("keys.makeIt")}
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
