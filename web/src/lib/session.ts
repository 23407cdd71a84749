import { notifications } from "@mantine/notifications";
import { useSuspenseQuery } from "@tanstack/react-query";
import i18next from "i18next";
import type { Scope } from "@/api/client";
import { sessionQuery } from "@/api/queries";

const order: Scope[] = ["read", "submit", "operate", "admin"];
export const scopes = order;

/** Who is signed in, and whether they may do what needs a scope. */
export function useSession() {
  const { data } = useSuspenseQuery(sessionQuery);
  return { ...data, may: (scope: Scope) => order.indexOf(data.scope) >= order.indexOf(scope) };
}

export function sayError(error: Error) {
  notifications.show({
    color: "red",
    title: i18next.t("common.error"),
    message: error.message,
    autoClose: 8_000,
  });
}

export function sayDone(message: string) {
  notifications.show({ message, color: "green", autoClose: 3_000 });
}
