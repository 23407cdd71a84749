import { Alert, Button, Card, Center, PasswordInput, Stack, Text, Title } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { createFileRoute, useNavigate } from "@tanstack/react-router";
import { type FormEvent, useEffect, useRef, useState } from "react";
import { useTranslation } from "react-i18next";
import * as v from "valibot";
import { type ApiError, api, data } from "@/api/client";
import { queryKeys } from "@/api/queries";
import { Logo } from "@/components/logo";

export const Route = createFileRoute("/sign-in")({
  validateSearch: v.object({ to: v.optional(v.fallback(v.string(), "/")) }),
  component: SignIn,
});

function SignIn() {
  const { t } = useTranslation();
  const { to } = Route.useSearch();
  const navigate = useNavigate();
  const queries = useQueryClient();
  const [key, setKey] = useState("");
  const [empty, setEmpty] = useState(false);
  const tried = useRef("");
  const signIn = useMutation<unknown, ApiError, { key?: string; link?: string }>({
    mutationFn: (body) =>
      data(
        api.POST("/api/session", {
          params: { header: { "Sluice-Dashboard": "1" } },
          body: { key: null, link: null, ...body },
        }),
      ),
    onSuccess: async (session) => {
      queries.clear();
      queries.setQueryData(queryKeys.session, session);
      // Never to another site.
      await navigate({ to: to?.startsWith("/") && !to.startsWith("//") ? to : "/", replace: true });
    },
  });
  const { mutate } = signIn;
  useEffect(() => {
    const takeLink = () => {
      const link = window.location.hash.slice(1);
      if (!link || tried.current === link) return;
      tried.current = link;
      window.history.replaceState(null, "", window.location.pathname);
      mutate({ link });
    };
    takeLink();
    window.addEventListener("hashchange", takeLink);
    return () => window.removeEventListener("hashchange", takeLink);
  }, [mutate]);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    setEmpty(!key.trim());
    if (key.trim()) signIn.mutate({ key: key.trim() });
  };
  return (
    <Center component="main" mih="100dvh" p="md">
      <Card w="100%" maw={400} padding="xl">
        <form onSubmit={submit} noValidate>
          <Stack gap="md">
            <Logo />
            <div>
              <Title order={1}>{t("signIn.title")}</Title>
              <Text size="sm" c="dimmed" mt={6}>
                {t("signIn.text")}
              </Text>
            </div>
            <PasswordInput
              label={t("signIn.key")}
              value={key}
              onChange={(event) => setKey(event.currentTarget.value)}
              error={empty ? t("signIn.empty") : undefined}
              autoComplete="current-password"
              data-autofocus
              placeholder="sluice_…"
            />
            {signIn.error && (
              <Alert color="red" variant="light" role="alert">
                <Text size="sm" c="var(--mantine-color-text)">
                  {signIn.error.message}
                </Text>
              </Alert>
            )}
            <Button type="submit" size="md" loading={signIn.isPending} fullWidth>
              {t("signIn.submit")}
            </Button>
            <Text size="xs" c="dimmed">
              {t("signIn.hint")}
            </Text>
          </Stack>
        </form>
      </Card>
    </Center>
  );
}
