import i18next from "i18next";
import { initReactI18next } from "react-i18next";
import { en, type Words } from "./en";

const KEPT = "sluice-language";
export const languages = { en: "English", zh: "简体中文" } as const;
export type Language = keyof typeof languages;

declare module "i18next" {
  interface CustomTypeOptions {
    defaultNS: "w";
    resources: { w: Words };
  }
}

function wanted(): Language {
  const asked = localStorage.getItem(KEPT) ?? navigator.language;
  return asked.startsWith("zh") ? "zh" : "en";
}

export async function speak(language: Language) {
  if (language === "zh" && !i18next.hasResourceBundle("zh", "w")) {
    i18next.addResourceBundle("zh", "w", (await import("./zh")).zh);
  }
  await i18next.changeLanguage(language);
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
}

export async function choose(language: Language) {
  localStorage.setItem(KEPT, language);
  await speak(language);
}

export async function startI18n() {
  await i18next.use(initReactI18next).init({
    lng: "en",
    fallbackLng: "en",
    defaultNS: "w",
    resources: { en: { w: en } },
    interpolation: { escapeValue: false },
  });
  await speak(wanted());
}
