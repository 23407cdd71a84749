import { Button } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useTranslation } from "react-i18next";
import { type Account, api, data } from "@/api/client";
import { queryKeys } from "@/api/queries";
import { type Condition, Confirm } from "@/components/parts";
import { sayDone, sayError, useSession } from "@/lib/session";

/** Pauses an account or puts it back to work, for those who may. */
export function SteerAccount({
  account,
  condition,
  compact,
}: {
  account: Account;
  condition: Condition;
  compact?: boolean;
}) {
  const { t } = useTranslation();
  const { may } = useSession();
  const queries = useQueryClient();
  const [asks, { open, close }] = useDisclosure();
  const path = { params: { path: { id: account.id } } };
  const settled = () => {
    queries.invalidateQueries({ queryKey: queryKeys.accounts });
    queries.invalidateQueries({ queryKey: queryKeys.overview });
  };
  const pause = useMutation({
    mutationFn: () => data(api.POST("/api/accounts/{id}/pause", path)),
    onSuccess: () => {
      close();
      sayDone(t("accounts.paused", { account: account.id }));
    },
    onError: sayError,
    onSettled: settled,
  });
  const resume = useMutation({
    mutationFn: () => data(api.POST("/api/accounts/{id}/resume", path)),
    onSuccess: () => sayDone(t("accounts.resumed", { account: account.id })),
    onError: sayError,
    onSettled: settled,
  });
  if (!may("operate")) return null;
  if (account.standing !== "active" || condition === "cooling") {
    return (
      <Button
        size="xs"
        variant="default"
        loading={resume.isPending}
        onClick={() => resume.mutate()}
        aria-label={`${t("accounts.resume")} ${account.id}`}
      >
        {t("accounts.resume")}
      </Button>
    );
  }
  if (compact) return null;
  return (
    <>
      <Button size="xs" variant="default" onClick={open} aria-label={`${t("accounts.pause")} ${account.id}`}>
        {t("accounts.pause")}
      </Button>
      <Confirm
        opened={asks}
        onClose={close}
        title={t("accounts.pauseTitle", { account: account.id })}
        text={t("accounts.pauseText", { count: account.in_flight })}
        confirm={t("accounts.pauseConfirm", { account: account.id })}
        danger={false}
        busy={pause.isPending}
        onConfirm={() => pause.mutate()}
      />
    </>
  );
}
